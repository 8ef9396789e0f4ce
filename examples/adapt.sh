#!/bin/sh
# An encoder that you use, adapted to your texts: a folder that takes its place, and what was gained, in a sentence.
#
#     examples/adapt.sh sentence-transformers/all-MiniLM-L6-v2 notes/ runs/minilm-notes
set -eu
encoder=$1
texts=$2
folder=$3
text-jepa adapt "$encoder" "$texts" --output_dir "$folder" --max_steps "${STEPS:-100}"
