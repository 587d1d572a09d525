"""``python -m sb3_dmamba``: the command line, by the name that torchrun can start."""

from sb3_dmamba.cli import main

if __name__ == "__main__":
    main()
