"""What is trained: stacks of named blocks, views of their flat parameters, and their costs."""

from lanterne.models.cost import BlockCost, block_costs, describe
from lanterne.models.cut import Cut, Part, UCut, find_cut, find_u_cut, legal_cuts
from lanterne.models.initial import initial_weights
from lanterne.models.input_costs import InputCost, input_costs
from lanterne.models.stack import LayerStack
from lanterne.models.statistics import Statistics, batch_norms, batch_statistics, total_variance, with_statistics
from lanterne.models.view import ParamView, full, prefix, reached, suffix

__all__ = [
    "BlockCost",
    "Cut",
    "InputCost",
    "LayerStack",
    "ParamView",
    "Part",
    "Statistics",
    "UCut",
    "batch_norms",
    "batch_statistics",
    "block_costs",
    "describe",
    "find_cut",
    "find_u_cut",
    "full",
    "initial_weights",
    "input_costs",
    "legal_cuts",
    "prefix",
    "reached",
    "suffix",
    "total_variance",
    "with_statistics",
]
