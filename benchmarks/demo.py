"""Run LLMD4Rec as `make demo` does and write a record: results, seconds, peak memory, versions, machine, commit.

python benchmarks/demo.py --dataset=ml-100k --out=benchmarks/records/demo-ml-100k.json [--key=value ...]
"""

import time
from pathlib import Path

from record import read_arguments, write_record


def main():
    settings = read_arguments()
    out = Path(settings.pop("out")).resolve()
    start = time.time()
    import recbole_llmd  # noqa: F401  (before RecBole, which it mends)

    # isort: split
    from recbole.quick_start import run_recbole

    from recbole_llmd.process_memory import peak_bytes

    result = run_recbole(config_dict={"model": "LLMD4Rec", **settings})
    write_record(
        out,
        settings,
        seconds=round(time.time() - start, 1),
        **{"peak memory GiB": round(peak_bytes() / 2**30, 2)},
        result=result,
    )


if __name__ == "__main__":
    main()
