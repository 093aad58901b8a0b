"""Run from a checkout: `python cli.py fit --config configs/smoke.yaml`; the same as the installed `pl-fed`."""

from pl_fed.cli import main

if __name__ == "__main__":
    main()
