#!/bin/sh
# From a folder of texts to a search in it, with an encoder that is trained on nothing else.
#
#     examples/search_a_folder.sh notes/ "what was said of the harbour?" runs/notes
set -eu
folder=$1
question=$2
encoder=$3
[ -e "$encoder" ] || text-jepa pretrain "$folder" --output_dir "$encoder" --max_steps "${STEPS:-2000}"
text-jepa search "$folder" "$question" --encoder "$encoder"
