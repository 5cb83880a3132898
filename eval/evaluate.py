"""Judge a merged checkpoint: AP by class, mAP by group (the same as `clip-more evaluate`).

python eval/evaluate.py runs/voc_mlt-bce_more
accelerate launch --num_processes 4 eval/evaluate.py runs/voc_mlt-bce_more
"""

import sys

from clip_more.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
