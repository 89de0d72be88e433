"""A list of tensor operators, as `torch.fx` writes it down, in the language of TorchScript's interpreter.

One line for each operator with all its arguments; constants have lines of their own. What this language, or this
writer, has no word for is refused.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator

import torch
from torch.fx import Graph, Node

#: PyTorch's own numbers for them.
_TYPES = {
    torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4, torch.float16: 5, torch.float32: 6,
    torch.float64: 7, torch.bool: 11, torch.bfloat16: 15,
}  # fmt: skip
_FORMATS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2}


class NotRecordableError(Exception):
    """These operators cannot be written down."""


def program_text(graph: Graph) -> str:
    """The program of a graph whose inputs and outputs are tensors; its result is the list of the outputs.

    Args:
        graph: of operators alone, as `make_fx` makes it. Calls without effect are removed from it.

    Raises:
        NotRecordableError: for a graph that needs more than that, or draws random numbers.

    Examples:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> graph = make_fx(lambda x, y: [x.add(y, alpha=2)])(torch.ones(2), torch.ones(2)).graph
        >>> print(program_text(graph))
        graph(%x_1 : Tensor, %y_1 : Tensor):
          %1 : int = prim::Constant[value=2]()
          %add : Tensor = aten::add(%x_1, %y_1, %1)
          %2 : Tensor[] = prim::ListConstruct(%add)
          return (%2)
    """
    graph.eliminate_dead_code()
    return _Writer().program(graph)


def halves(graph: Graph, late: int) -> tuple[Graph, Graph]:
    """A graph in two: what can be done before one of its inputs is there, and the rest.

    The first gives the graph's first output, and then what the second wants. The second takes that in, and then the
    late input; it gives the graph's other outputs.

    Args:
        graph: of operators alone; its result is a list. Calls without effect are removed from it.
        late: which of its inputs comes later; its first output must not depend on it.

    Examples:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> graph = make_fx(lambda x, y: [x.sin(), x.cos() * y])(torch.ones(2), torch.ones(2)).graph
        >>> for half in halves(graph, 1):
        ...     print(program_text(half))
        graph(%x_1 : Tensor):
          %sin : Tensor = aten::sin(%x_1)
          %cos : Tensor = aten::cos(%x_1)
          %1 : Tensor[] = prim::ListConstruct(%sin, %cos)
          return (%1)
        graph(%cos : Tensor, %y_1 : Tensor):
          %mul : Tensor = aten::mul(%cos, %y_1)
          %1 : Tensor[] = prim::ListConstruct(%mul)
          return (%1)
    """
    graph.eliminate_dead_code()
    *nodes, end = graph.nodes
    waits = {[node for node in nodes if node.op == "placeholder"][late]}
    for node in nodes:
        if not waits.isdisjoint(node.all_input_nodes):
            waits.add(node)
    [output, *others] = end.args[0]
    wanted = {*others, *(before for node in waits for before in node.all_input_nodes)} - waits
    kept = [node for node in nodes if node in wanted]
    first, second = Graph(), Graph()
    early: dict[Node, Node] = {}
    rest: dict[Node, Node] = {node: second.placeholder(node.name) for node in kept}
    for node in nodes:
        half, known = (second, rest) if node in waits else (first, early)
        known[node] = half.node_copy(node, known.__getitem__)
    first.output([early[node] for node in (output, *kept)])
    second.output([rest[node] for node in others])
    return first, second


class _Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.constants = 0

    def program(self, graph: Graph) -> str:
        inputs = []
        for node in graph.nodes:
            if node.op == "placeholder":
                inputs.append(f"%{node.name} : Tensor")
            elif node.op == "output":
                [outputs] = node.args
                self.lines.append(f"return ({self._list(outputs, 'Tensor')})")
            elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                self._call(node, node.target)
            elif node.target is not operator.getitem:  # those are named by the call whose results they are
                raise NotRecordableError(f"{node.op} of {node.target}")
        return f"graph({', '.join(inputs)}):\n  " + "\n  ".join(self.lines)

    def _call(self, node: Node, called: torch._ops.OpOverload) -> None:
        schema = called._schema
        if torch.Tag.nondeterministic_seeded in called.tags:
            raise NotRecordableError(f"{schema.name} draws random numbers")
        if any(str(result.type) != "Tensor" for result in schema.returns):
            raise NotRecordableError(f"{schema.name} gives more than tensors")
        given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
        arguments = [self._value(given.get(a.name, a.default_value), str(a.type)) for a in schema.arguments]
        names = ", ".join(f"%{name} : Tensor" for name in self._results(node, len(schema.returns)))
        self.lines.append(f"{names} = {schema.name}({', '.join(arguments)})")

    def _results(self, node: Node, count: int) -> Iterator[str]:
        if count == 1:
            yield node.name
            return
        taken = {user.args[1]: user.name for user in node.users}
        if len(taken) < len(node.users):
            raise NotRecordableError(f"a result of {node.target} is taken twice")
        for i in range(count):
            yield taken.get(i, f"{node.name}_unused_{i}")

    def _value(self, value: object, kind: str) -> str:
        if isinstance(value, Node):
            return f"%{value.name}"
        if isinstance(value, list | tuple):
            element = kind.removeprefix("Optional[").removeprefix("List[").rstrip("]")
            return self._list(value, {"SymInt": "int"}.get(element, element))
        return self._constant(value, kind)

    def _list(self, values: object, element: str) -> str:
        if not isinstance(values, list | tuple) or element not in ("int", "float", "bool", "Tensor"):
            raise NotRecordableError(f"a list of {element}")
        items = ", ".join(self._value(v, element) for v in values)
        return self._line(f"{element}[]", f"prim::ListConstruct({items})")

    def _constant(self, value: object, kind: str) -> str:
        if isinstance(value, torch.dtype) and value in _TYPES:
            value = _TYPES[value]
        elif isinstance(value, torch.memory_format) and value in _FORMATS:
            value = _FORMATS[value]
        if value is None:
            return self._line("None", "prim::Constant()")
        if isinstance(value, bool):
            return self._line("bool", f"prim::Constant[value={int(value)}]()")
        if isinstance(value, float) or (isinstance(value, int) and "float" in kind):
            if not math.isfinite(value):
                raise NotRecordableError(f"the number {value}")
            return self._line("float", f"prim::Constant[value={float(value)!r}]()")
        if isinstance(value, int):
            return self._line("int", f"prim::Constant[value={value}]()")
        if isinstance(value, str | torch.device):
            name = "str" if isinstance(value, str) else "Device"
            return self._line(name, f'prim::Constant[value="{value}"]()')
        raise NotRecordableError(f"an argument of type {type(value).__name__}")

    def _line(self, kind: str, what: str) -> str:
        self.constants += 1
        self.lines.append(f"%{self.constants} : {kind} = {what}")
        return f"%{self.constants}"
