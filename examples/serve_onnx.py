"""Vectors without torch: `text-jepa export onnx FOLDER`, then `python serve_onnx.py FOLDER "a text" "another"`."""

import sys

import numpy as np
import onnxruntime
import tokenizers


texts = sys.argv[2:] or sys.exit("usage: python serve_onnx.py FOLDER TEXT ...")
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/onnx/model.onnx")
settings = session.get_modelmeta().custom_metadata_map
tokenizer = tokenizers.Tokenizer.from_file(f"{sys.argv[1]}/tokenizer.json")
tokenizer.enable_truncation(int(settings["max_length"]))
tokenizer.enable_padding()
batch = tokenizer.encode_batch([settings["prompt"] + text for text in texts])
ids = np.array([text.ids for text in batch])
mask = np.array([text.attention_mask for text in batch])
(vectors,) = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})
np.savetxt(sys.stdout, vectors)  # a line for each text
