"""Run a model, as RecBole's run_recbole.py does: python run_recbole_llmd.py --model=LLMD4Rec --dataset=ml-100k"""

import sys

from recbole_llmd.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
