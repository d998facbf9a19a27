#!/usr/bin/env bash
# The five studies of model_cards/study.md, and before them the second world, where all but one begin or find their teachers.
# For two cores: two processes of one thread each. Typed again, it goes on where it stopped.
set -euo pipefail
export OMP_NUM_THREADS=1
export MALLOC_MMAP_THRESHOLD_=2000000000 MALLOC_TRIM_THRESHOLD_=4000000000   # glibc keeps freed memory for the next step
tools=$(dirname "$0")
recipes=$tools/../recipes
world=(python "$tools/train_shapes.py" --seed 1 --output_dir outputs/shapes_world_1
    --teacher_stages 0 200 300 335 340 345 400 600 800 1200)

"${world[@]}" &
teacher=$!
trap 'kill "$teacher" 2>/dev/null || true' EXIT
"${world[@]}" --only_students
python "$recipes/study.py" --config study_trainable
python "$recipes/study.py" --config study_sds --workers 2 --seeds 0 2 4 6 8   # those of the first world
wait "$teacher"
for name in study_ranking study_sds study_teachers study_teachers_direction; do
    python "$recipes/study.py" --config "$name" --workers 2
done
