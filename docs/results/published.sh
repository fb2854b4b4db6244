#!/bin/sh
# The comparisons at the published lengths, for a machine with a GPU. Not run so far; tried out on a CPU at tiny sizes.
#
#   sh published.sh HOSTS DATA OUT [NAME...]
#
# HOSTS  folder of the upstream checkouts; DATA  folder with torchvision's cifar-10-batches-py; OUT  where results go;
# NAME   dm-10, dm-50, idc-10, dsa-10, mtt-10: which, by default the first three. Whatever is interrupted goes on with the
# same command. MTT needs its experts in HOSTS/buffers (upstream's buffer.py). DATM says everything in a configuration file of
# its own, folders too: ddplug compare datm ... -- --cfg FILE.
set -eu
hosts=$1 data=$2 out=$3
shift 3
[ $# -gt 0 ] || set -- dm-10 dm-50 idc-10

# What a try at tiny sizes sets otherwise.
pool=${POOL:---arch convnet --epochs 40} count=${COUNT:-20} heldout=${HELDOUT:-3} seeds=${SEEDS:-3}
weights=${WEIGHTS:-0,1,3,5} judges=${JUDGES:---epochs 1000 --judge-lr 0.01 --runs 5} steps=${STEPS:-} small=${SMALL:-}

ddplug pretrain "$out/pool" --data cifar10 --data-path "$data" $pool --count "$count"
ddplug pretrain "$out/heldout" --data cifar10 --data-path "$data" $pool --count "$heldout" --seed 1000

compare() { # NAME HOST FOLDER, and after them the host's own arguments
    name=$1 host=$2 repo=$hosts/$3
    shift 3
    ddplug compare "$host" --repo "$repo" --data cifar10 --data-path "$data" --out "$out/$name" --proxies "$out/pool" \
        --heldout "$out/heldout" --weights "$weights" --seeds "$seeds" $judges -- "$@" $small
}

for name in "$@"; do
    ipc=${name#*-}
    case $name in
    dm-*) compare "$name" dm DatasetCondensation --dataset CIFAR10 --ipc "$ipc" --data_path "$data" \
        --Iteration "${steps:-20000}" ;;
    dsa-*) compare "$name" dsa DatasetCondensation --method DSA --dataset CIFAR10 --ipc "$ipc" --data_path "$data" \
        --init real --dsa_strategy color_crop_cutout_flip_scale_rotate --Iteration "${steps:-1000}" ;;
    idc-*) compare "$name" idc Efficient-Dataset-Condensation --reproduce -d cifar10 -f 2 --ipc "$ipc" --data_dir "$data" ;;
    mtt-*) compare "$name" mtt mtt-distillation --dataset CIFAR10 --ipc "$ipc" --data_path "$data" \
        --buffer_path "$hosts/buffers" --zca --syn_steps 30 --expert_epochs 2 --max_start_epoch 15 --lr_img 1000 \
        --lr_lr 1e-05 --Iteration "${steps:-5000}" ;;
    *) echo "unknown: $name" >&2; exit 2 ;;
    esac
done
ddplug plot $(for name in "$@"; do echo "$out/$name"; done) --out "$out/published.png"
