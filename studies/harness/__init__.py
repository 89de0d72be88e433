"""What studies share: cells that are computed once, tuning, measures, and what is published.

cells       a plan's cells in processes, each result one file, a killed study goes on
plan        axes, methods, learning rates: from them the cells
race        one cell: a competitor for so much virtual time
epochs      one cell: a competitor for so many samples
tune        a validation split, and the choice of a learning rate
measures    numbers from rows
publish     rows, tables, pictures, and what was not run
"""
