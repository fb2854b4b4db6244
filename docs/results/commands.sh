#!/bin/sh
# The commands behind the tables, to copy from. A folder's weights and seeds are those of its table.
cifar="--data cifar10 --data-path $DATA"
judges="--epochs 150 --runs 3 --judge-lr 0.01 --width 64"
few="--epochs 120 --runs 2 --judge-lr 0.01 --width 64"
narrow="--epochs 150 --runs 2 --judge-lr 0.01 --width 32"
logits="--representation logit --weighting relative"
features="--representation feature --weighting relative"
short="--ipc 10 --iterations 100 --batch-real 48 --checkpoints 1"
longer="--ipc 10 --iterations 150 --batch-real 64 --checkpoints 1"

# Proxies. The first of each pair is regularised with (--proxies), the second is held out (--heldout).
ddplug pretrain resnets $cifar --arch resnet18 --width 32 --count 2 --epochs 5 --precision bf16
ddplug pretrain convnets $cifar --arch convnet --width 64 --count 2 --epochs 5
ddplug pretrain digits-pool --data digits --arch convnet --width 64 --epochs 15 --lr 0.1 --count 1

# dm, with the ResNets
ddplug compare dm --repo DatasetCondensation $cifar $features $judges \
    -- --dataset CIFAR10 --model ConvNetW64 --ipc 10 --batch_real 64 --Iteration 300 --data_path "$DATA"

# own, with the ResNets; own-clean, own-logit, own-temperature and own-convnet add --baseline own and change one option
ddplug compare own $cifar $features $judges $longer
# own-long
ddplug compare own $cifar $features $judges $longer --first-seed 3 --iterations 450 --checkpoints 3
# own-convnet-logit, with ConvNets of the usual width
ddplug compare own $cifar $logits $judges $longer --first-seed 6

# own-defaults; own-one-image adds --ipc 1 --views-per-image 4, own-five-classes takes --data FOLDER and
# --strategy color_crop_cutout_flip_scale_rotate
ddplug compare own $cifar $logits $few $short --first-seed 20
# own-sustained
ddplug compare own $cifar --representation logit --weighting sustained $few $short --first-seed 20
# own-terms
ddplug compare own $cifar --representation logit --weighting sustained $few $short --first-seed 40 \
    --terms=cmi,-cmi,ncmi,centralisation,covariance,diversity,spread,mim,proxy_ce
# own-epochs-2, -5, -15 (which takes --baseline own-epochs-5, as does -2), own-terms-again
small="--epochs 120 --runs 2 --judge-lr 0.01 --width 32"
for epochs in 2 5 15; do ddplug pretrain "epochs-$epochs" $cifar --arch convnet --width 32 --count 1 --epochs $epochs --seed 100; done
ddplug pretrain held $cifar --arch convnet --width 32 --count 1 --epochs 12 --seed 900
ddplug compare own $cifar $small $short --first-seed 60 --proxies epochs-5 --heldout held
ddplug compare own $cifar $small $short --first-seed 60 --proxies epochs-5 --heldout held --baseline own-epochs-5 \
    --terms cmi,ncmi,proxy_ce,cmi+proxy_ce,ncmi+proxy_ce
# own-four-proxies, with the baseline of own-epochs-5
ddplug pretrain epochs-5x4 $cifar --arch convnet --width 32 --count 4 --epochs 5 --seed 100
ddplug compare own $cifar $small $short --first-seed 60 --proxies epochs-5x4 --heldout held --baseline own-epochs-5
# own-thousand
ddplug compare own $cifar $small --first-seed 80 --proxies epochs-5 --heldout held --ipc 10 --batch-real 48 --iterations 1000 --checkpoints 4
# own-noise, own-noise-digits
ddplug compare own $cifar $logits $few $short --init noise --lr 20 --terms cmi,proxy_ce,cmi+proxy_ce --first-seed 60
ddplug compare own --data digits $logits --init noise --lr 20 --terms cmi,proxy_ce,cmi+proxy_ce --first-seed 60 \
    --ipc 10 --iterations 150 --checkpoints 1 --width 64 --epochs 220 --runs 2

# The hosts at the defaults
ddplug compare dsa --repo DatasetCondensation $cifar $logits $narrow \
    -- --method DSA --dataset CIFAR10 --model ConvNetW32 --ipc 10 --init real --batch_real 64 --Iteration 3 --data_path "$DATA" \
    --dsa_strategy color_crop_cutout_flip_scale_rotate
ddplug compare dm --repo DatasetCondensation $cifar $logits $narrow \
    -- --dataset CIFAR10 --model ConvNetW32 --ipc 10 --batch_real 64 --Iteration 150 --data_path "$DATA"
ddplug compare idc --repo Efficient-Dataset-Condensation $cifar $logits $narrow \
    -- -d cifar10 --ipc 10 --factor 2 --width 0.25 --niter 1 --inner_loop 2 --n_data 200 --batch_real 32 --workers 0 --data_dir "$DATA"
# idc-weights: the line above with $small in the place of $narrow, --proxies epochs-5, --heldout held, --first-seed 70
# The experts of MTT and DATM: ten ConvNets of width 32, eight epochs on 10 000 images (make_buffer.py of the upstream tests)
ddplug compare mtt --repo mtt-distillation $cifar $logits $narrow --proxies experts \
    -- --ipc 10 --model ConvNetW32 --batch_syn 20 --syn_steps 4 --expert_epochs 1 --max_start_epoch 6 --lr_img 1000 --Iteration 1000 \
    --data_path "$DATA" --buffer_path experts
# dsa-again, datm-again, mtt-again: as idc-weights, with --first-seed 70, 90 and 90, and experts of one ConvNet for eight epochs
# datm.yaml: dataset CIFAR10, ipc 10, model ConvNetW32, batch_syn 20, syn_steps 2, expert_epochs 1, min_start_epoch 0,
# current_max_start_epoch 3, max_start_epoch 6, expansion_end_epoch 500, zca False, pix_init real, Iteration 1000,
# parall_eva True, lr_img 1000, threshold 1.5, and the two folders
ddplug compare datm --repo DATM $cifar $logits $narrow --proxies experts -- --cfg datm.yaml

# epochs.json
python benchmarks/epochs.py own-sustained weight-4-host $cifar --every 10 --test-images 1000
