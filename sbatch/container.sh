#!/bin/bash
# A Python that is in a container. Name a copy of this script wherever an interpreter is asked for, and each worker
# starts in the image, with the arguments as they come:
#
#   [live]                                      in the job file: guaranteed workers, standbys, and all that follows
#   python = "/shared/container.sh"
#
#   PYTHON=/shared/container.sh sbatch single.sh "$run_dir"         likewise standby.sh
#
# The run directory has to be in a folder that all nodes share; it is the same path inside. liver-slurm must be
# installed in the image and outside of it, in the same version: the coordinator talks to Slurm, and Slurm's commands
# are outside.

# ---- to be set ----------------------------------------------------------------------------------------------------

# Apptainer: a .sif file or docker://…; Enroot: a .sqsh file, or the name of a container that is on each node.
IMAGE=${LIVER_IMAGE:-/shared/images/liver-slurm.sif}
# The interpreters in the image and outside.
PYTHON_INSIDE=${LIVER_PYTHON_INSIDE:-python3}
PYTHON_OUTSIDE=${LIVER_PYTHON_OUTSIDE:-python3}
# Further folders that the job file names (data, tokenizer, a model of your own), and those of PYTHONPATH and of caches
# such as TRITON_CACHE_DIR. The folder in which you submit is there, too.
FOLDERS=("${RUN_DIR:?container.sh: RUN_DIR is not set; it is in the jobs of liver-slurm}")

# -------------------------------------------------------------------------------------------------------------------

set -u
case " $* " in *" liver_slurm.coordinator "*) exec "$PYTHON_OUTSIDE" "$@" ;; esac

if command -v apptainer > /dev/null; then
    options=()
    for folder in "${FOLDERS[@]}"; do options+=(--bind "$folder"); done
    [ -z "${CUDA_VISIBLE_DEVICES:-}" ] || options+=(--nv)
    # The environment, /dev/shm and the network are those outside.
    exec apptainer exec "${options[@]}" "$IMAGE" "$PYTHON_INSIDE" "$@"
elif command -v enroot > /dev/null; then
    options=()
    for folder in "${FOLDERS[@]}" "$PWD"; do options+=(--mount "$folder:$folder"); done
    # Enroot starts with the image's environment; a worker wants what Slurm and the job file's setup say.
    for name in $(compgen -e); do
        case $name in
        SLURM* | SUBMITIT* | LIVER_* | RUN_DIR | OMP_* | CUDA_* | NCCL_* | GLOO_* | UCX_*) options+=(--env "$name") ;;
        PYTHONPATH | PYTORCH_* | TORCHINDUCTOR_* | TRITON_*) options+=(--env "$name") ;;
        esac
    done
    # It starts in the image's folder; modules of your own may lie in the one of the job.
    # shellcheck disable=SC2016 # the words are for the inner shell
    exec enroot start "${options[@]}" "$IMAGE" \
        sh -c 'cd "$0" && exec "$@"' "$PWD" "$PYTHON_INSIDE" "$@"
fi
echo "container.sh: neither apptainer nor enroot is on $(hostname); install one, or use Pyxis (see single.sh)" >&2
exit 127
