"""One module a figure that is not a rate of commits: what it measures, how, and its goal.

Each has `measure(quick, directory) -> Figure` and runs alone as `python -m bench.figures.NAME`.
"""
