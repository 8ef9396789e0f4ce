#!/usr/bin/env bash
# Makes an encoder that you use one for your domain, and says whether it became better there: the same probe of both,
# with the interval of the difference. TEXTS are documents without labels; what follows OUTPUT goes to run_probe.py and
# names texts with labels (`--task_file mine.csv`) or questions with their answers (`--rerank_dir folder`).
#
#     examples/domain_adaptation.sh ENCODER TEXTS OUTPUT PROBE…
#     zcat ../shared/data/qqp_rerank/text_tokenized.txt.gz | cut -f 2- > questions.txt
#     examples/domain_adaptation.sh bert-base-uncased questions.txt runs/questions --rerank_dir ../shared/data/qqp_rerank
#
# STEPS is 2000; STEPS=20 shows that all of it runs. The encoder learns slowly, the new predictor beside it fast: the
# rates are in configs/continue-masked-lm.yaml. That the scored texts are among TEXTS, without labels, is usual but
# flatters the new encoder: take them out for a fair figure.
set -euo pipefail
encoder=${1:?the encoder: folder or Hub name} texts=${2:?texts to adapt to} output=${3:?folder to write} steps=${STEPS:-2000}
shift 3

accelerate launch --quiet --num_cpu_threads_per_process "$(nproc)" run_pretraining.py \
    configs/continue-masked-lm.yaml --model_name_or_path "$encoder" --train_file "$texts" --output_dir "$output" \
    --max_steps "$steps" --ema_frozen_steps "$((steps / 10))"
python run_probe.py "$output" --compare "$encoder" "$@"
