"""`python -m circuitsearch`, for launchers that start a module (`accelerate launch -m`)."""

from circuitsearch.cli.main import main

if __name__ == "__main__":
    main()
