"""Compare a run's untouched CLIP, general part and merged model (the same as `clip-more zero-shot`).

python eval/zero_shot.py runs/voc_mlt-bce_more
accelerate launch --num_processes 4 eval/zero_shot.py runs/voc_mlt-bce_more
"""

import sys

from clip_more.cli import main

if __name__ == "__main__":
    sys.exit(main(["zero-shot", *sys.argv[1:]]))
