#!/bin/bash
# Measure on a GPU, in ten minutes at most: benchmarks/gpu.sh OUT [FOLDER OF CIFAR-10]
#
# Each part has a limit in seconds and writes OUT/PART.json or OUT/PART.log when it ends, so a run that is cut off keeps
# what it has. `TINY=1` runs every part on the CPU at sizes of a test.
set -u
cd "$(dirname "$0")/.." && mkdir -p "$1" && out=$(cd "$1" && pwd) && data=${2:-}
python=${PYTHON:-python}
if [ -n "${TINY:-}" ]; then
    on=cpu few="--repeats 1" step="--images 10" memory="--images 40 --recipe-images 20"
    classes="--images 10 --whole 10 --pixels 64" dm="--ipc 1 --batch-real 2 --architecture convnet"
    own="--ipc 2 --iterations 12 --width 8 --runs 1 --epochs 2 --batch-real 4" pool="--count 2 --epochs 1 --width 8"
else
    on=cuda few="" step="--images 500 --compile" memory="--images 5000 --recipe-images 5000"
    classes="--images 10000 --whole 10000 --pixels 224" dm="--ipc 50"
    own="--ipc 10 --iterations 1000 --runs 2 --epochs 300" pool="--count 3 --epochs 15"
fi
[ -n "$data" ] && own="$own --data cifar10 --data-path $data" && pool="$pool --data cifar10 --data-path $data"

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=${TINY:+600} begin=$SECONDS
    limit=${limit:-$2}
    shift 2
    timeout --signal INT --kill-after 10 "$limit" "$@" > "$out/$name.log" 2>&1
    echo "$name: exit status $?, $((SECONDS - begin)) s of $limit"
}

part cuda-tests 180 "$python" -m pytest -q -n 4 -m cuda
part step 60 "$python" benchmarks/step.py --device $on --out "$out/step.json" $few $step
part memory 60 "$python" benchmarks/memory.py --device $on --out "$out/memory.json" $few $memory
part classes 60 "$python" benchmarks/classes.py --device $on --out "$out/classes.json" $few $classes
part dm 40 "$python" benchmarks/dm.py --device $on --out "$out/dm.json" $few $dm
part pool 90 "$python" -m ddplug pretrain "$out/pool" --device $on $pool
part heldout 60 "$python" -m ddplug pretrain "$out/heldout" --device $on --seed 900 $pool
left=$((590 - SECONDS))
[ $left -gt 30 ] && part compare $left "$python" -m ddplug compare own --out "$out/compare" --device $on \
    --proxies "$out/pool" --heldout "$out/heldout" --weights 0,1,3 --seeds 3 $own
true
