#!/bin/sh
# Train the shipped models anew from a folder of speech:
#
#     sh make_models.sh SPEECH MODELS    # writes MODELS/wavinwav.pt, lattice.pt, paper.pt, robust.pt
#     sh make_models.sh SPEECH MODELS --steps 2 --val_pairs 4    # further flags go to each training
#
# Every sound file below SPEECH is used; README.md tells where ours came from. Each training leaves
# its checkpoints and metrics in MODELS/runs; the same command goes on where it was stopped, and
# leaves a model that is there as it is.
set -eu
if [ $# -lt 2 ] || [ ! -d "$1" ]; then
    echo "error: give a folder of speech, and one for models: sh make_models.sh SPEECH MODELS" >&2
    exit 2
fi
here=$(dirname "$0") speech=$1 models=$2
shift 2

# make NAME MODULE FLAGS...: train, and copy the best weights to NAME.pt
make() {
    name=$1 module=$2
    shift 2
    if [ -e "$models/$name.pt" ]; then
        echo "$models/$name.pt is there already"
        return
    fi
    if [ -e "$models/runs/$name/last.pt" ]; then
        set -- --resume "$@"
    fi
    PYTHONPATH="$here" python -m "$module" --data_dir "$speech" --out_dir "$models/runs/$name" "$@"
    cp "$models/runs/$name/best.pt" "$models/$name.pt"
}

make wavinwav train "$@"          # 1,500 steps: 14 minutes on one core
make lattice lattice.train "$@"   # 4,000 steps: 26 minutes; 500 come within 0.04 bits
# The paper's network in four stages, of 47, 7, 4 and 36 minutes on one core
make paper_1 train --preset bands "$@"
later="--preset bands --tilt 18 --w_stego_end 0 --stft_from 0"
make paper_2 train $later --init_from "$models/paper_1.pt" --steps 1600 --lr 6e-4 \
    --w_stego 30 --stft 0.003 "$@"
make paper_3 train $later --init_from "$models/paper_2.pt" --steps 800 --lr 3e-4 \
    --w_stego 20 --stft 0.006 "$@"
make paper train $later --init_from "$models/paper_3.pt" --steps 8000 --lr 1e-3 \
    --w_stego 20 --stft 0.008 --gain 8 "$@"
make robust train --preset robust "$@"  # 1,500 steps: 6 minutes
