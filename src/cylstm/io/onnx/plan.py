"""A graph cut at its recurrent nodes: what is between them is models for an evaluator.

Nodes stand at levels: the number of recurrent nodes before them. All ordinary nodes of a level are
one model; then come the level's recurrent nodes, and then the next level. An If with a recurrent
node in a branch is a cut as well: its condition is a value like others, its branches plans.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from cylstm.io.onnx import evaluators
from cylstm.io.onnx.errors import OnnxError, failure, named, package
from cylstm.io.onnx.nodes import Recurrence, is_recurrent, label
from cylstm.io.onnx.reading import subgraphs_of
from cylstm.module import Array

#: Operators that are evaluated to find weights, and how much larger than their inputs outputs are.
_FOLDED = {"Cast": 8, "Concat": 1, "DequantizeLinear": 8, "Flatten": 1, "Identity": 1, "Reshape": 1,
           "Slice": 1, "Split": 1, "Squeeze": 1, "Transpose": 1, "Unsqueeze": 1}  # fmt: skip


def subgraphs(node: Any) -> list[Any]:
    """Return the graphs inside a node."""
    return [graph for attribute in node.attribute for graph in subgraphs_of(attribute)]


def holds_recurrence(node: Any) -> bool:
    """Whether there is a recurrent node in one of a node's graphs, at any depth."""
    inner = [n for graph in subgraphs(node) for n in graph.node]
    return any(is_recurrent(n) or holds_recurrence(n) for n in inner)


def reads(node: Any) -> set[str]:
    """Names that a node reads, and that its graphs read from outside."""
    found = {name for name in node.input if name}
    for graph in subgraphs(node):
        found |= free_names(graph)
    return found


def free_names(graph: Any) -> set[str]:
    """Names that a graph reads without making them."""
    made = {value.name for value in (*graph.initializer, *graph.input)}
    made |= {sparse.values.name for sparse in graph.sparse_initializer}
    found: set[str] = set()
    for node in graph.node:
        found |= reads(node) - made
        made |= set(node.output)
    return found | {value.name for value in graph.output} - made


class Context:
    """What all plans of one model share.

    Parameters
    ----------
    model : onnx.ModelProto
        With the types that inference found.
    evaluator : str
    max_bytes : int
        Most bytes of weights that are computed from others.
    """

    def __init__(self, model: Any, evaluator: str, max_bytes: int) -> None:
        self.evaluator, self.max_bytes = evaluator, max_bytes
        self._opsets, self._version = list(model.opset_import), model.ir_version
        #: Type of a value in memory, by name.
        self.types: dict[str, int] = {}
        #: Recurrent nodes, by the name of the node, in order.
        self.nodes: dict[str, Recurrence] = {}
        self._note_types(model.graph)

    def _note_types(self, graph: Any) -> None:
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.tensor_type.elem_type:
                self.types[value.name] = value.type.tensor_type.elem_type
        for node in graph.node:
            for inner in subgraphs(node):
                self._note_types(inner)

    def model(self, nodes: Any, inputs: Mapping[str, int], outputs: Any, constants: Any) -> Any:
        """Make a model of nodes, with types of inputs."""
        helper = package().helper
        graph = helper.make_graph(
            nodes,
            "part",
            [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            constants,
        )
        return helper.make_model(graph, opset_imports=self._opsets, ir_version=self._version)

    def prepare(
        self, nodes: Any, inputs: Mapping[str, int], outputs: Any, constants: Any
    ) -> evaluators.Run:
        """Make a function of nodes."""
        model = self.model(nodes, inputs, outputs, constants)
        return evaluators.prepare(self.evaluator, model, outputs)


class Scope:
    """Names that are known before anything runs: constants of a graph and of those around it."""

    def __init__(self, graph: Any, outer: Scope | None, context: Context) -> None:
        self._context = context
        self.constants: dict[str, Any] = dict(outer.constants) if outer else {}
        self.constants |= {tensor.name: tensor for tensor in graph.initializer}
        self._makers: dict[str, Any] = dict(outer._makers) if outer else {}
        #: Nodes that are not constants.
        self.nodes: list[Any] = []
        for node in graph.node:
            value = _constant(node)
            if value is None:
                self.nodes.append(node)
                self._makers |= dict.fromkeys(node.output, node)
            else:
                self.constants[node.output[0]] = value

    def value(self, name: str) -> Array | None:
        """Value of a name that depends on constants alone, or None.

        Raises
        ------
        OnnxError
            A constant is damaged, or computing it takes too much memory.
        """
        if name in self.constants:
            with named(f"model: tensor {name!r}"):
                found: Array = package().numpy_helper.to_array(self.constants[name])
                return found
        nodes: dict[int, Any] = {}
        size = self._fold(name, nodes, {}, 0)
        if size is None:
            return None
        needed = set().union(*map(reads, nodes.values()))
        constants = [t for n, t in self.constants.items() if n in needed]
        run = self._context.prepare(list(nodes.values()), {}, [name], constants)
        with named(f"model: tensor {name!r}"):
            result: Array = run({})[0]
            return result

    def _fold(
        self, name: str, nodes: dict[int, Any], sizes: dict[str, int | None], depth: int
    ) -> int | None:
        """Collect the nodes that make a constant, in order; return a bound of its bytes."""
        if name in self.constants:
            return int(self.constants[name].ByteSize())
        if name in sizes:
            return sizes[name]
        sizes[name] = None
        node = self._makers.get(name)
        if node is None or node.domain or node.op_type not in _FOLDED or depth > 50:
            return None
        total = 0
        for needed in filter(None, node.input):
            size = self._fold(needed, nodes, sizes, depth + 1)
            if size is None:
                return None
            total += size
        total *= _FOLDED[node.op_type]
        if total > self._context.max_bytes:
            raise OnnxError(f"{label(node)}: expected weights computed in at most "
                            f"max_bytes={self._context.max_bytes} bytes")  # fmt: skip
        nodes.setdefault(id(node), node)
        sizes |= dict.fromkeys(node.output, total)
        return total


def _constant(node: Any) -> Any:
    """Tensor of a Constant node; None for other nodes, and for strings and sparse values."""
    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
        return None
    helper, kinds = package().helper, package().TensorProto
    attribute = node.attribute[0]
    if attribute.name == "value":
        attribute.t.name = node.output[0]  # it goes on as an initialiser
        return attribute.t
    numbers = {"value_float": kinds.FLOAT, "value_int": kinds.INT64,
               "value_floats": kinds.FLOAT, "value_ints": kinds.INT64}  # fmt: skip
    if attribute.name not in numbers:
        return None
    value = helper.get_attribute_value(attribute)
    many = attribute.name.endswith("s")
    values = list(value) if many else [value]
    shape = [len(values)] if many else []
    return helper.make_tensor(node.output[0], numbers[attribute.name], shape, values)


class Rest:
    """Nodes between cuts, as a model of their own.

    It is prepared at once if the types of its inputs are known, otherwise when they come.
    """

    def __init__(
        self, nodes: list[Any], outputs: list[str], scope: Scope, context: Context
    ) -> None:
        made = {name for node in nodes for name in node.output}
        needed = set().union(*map(reads, nodes)) - made
        self.inputs = sorted(needed - set(scope.constants))
        self.needs: set[str] = set()  # of constants: it has its own
        self.outputs = outputs
        constants = [t for n, t in scope.constants.items() if n in needed]
        self._parts = (context, nodes, constants)
        self._lock = threading.Lock()
        self._run: evaluators.Run | None = None
        types = {name: context.types.get(name, 0) for name in self.inputs}
        if all(types.values()):
            self._prepare(types)

    def _prepare(self, types: Mapping[str, int]) -> evaluators.Run:
        context, nodes, constants = self._parts
        self._run = run = context.prepare(nodes, types, self.outputs, constants)
        self._parts = (context, [], [])  # the evaluator has its own
        return run

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run the nodes on values by name, and return those that are needed further on."""
        try:
            feeds = {name: values[name] for name in self.inputs}
            run = self._run or self._prepared(feeds)
            return dict(zip(self.outputs, run(feeds), strict=True))
        except Exception as error:
            raise failure(f"outputs {', '.join(self.outputs)}", error) from error

    def _prepared(self, feeds: Mapping[str, Any]) -> evaluators.Run:
        kind = package().helper.np_dtype_to_tensor_dtype
        with self._lock:
            return self._run or self._prepare({n: kind(v.dtype) for n, v in feeds.items()})


class Choice:
    """An If with recurrent nodes in its branches."""

    def __init__(self, node: Any, scope: Scope, context: Context) -> None:
        self.label = label(node)
        self.condition = node.input[0]
        self.needs = {self.condition}
        self.outputs = list(node.output)
        graphs = {attribute.name: attribute.g for attribute in node.attribute}
        self.branches = {
            True: Plan(graphs["then_branch"], scope, context),
            False: Plan(graphs["else_branch"], scope, context),
        }
        for branch in self.branches.values():
            if len(branch.outputs) != len(self.outputs):
                raise OnnxError(
                    f"{self.label}: expected branches with {len(self.outputs)} outputs, got one "
                    f"with {len(branch.outputs)}"
                )

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run the branch that the condition says."""
        condition = values[self.condition]
        if condition.size != 1:
            raise OnnxError(f"{self.label}: expected one condition, got shape {condition.shape}")
        branch = self.branches[bool(condition.reshape(()))]
        found = branch.run(values)
        return dict(zip(self.outputs, (found[name] for name in branch.outputs), strict=True))


class Plan:
    """A graph as steps: models for an evaluator, and recurrent nodes, by turns.

    Parameters
    ----------
    graph : onnx.GraphProto
    outer : Scope or None
        Of the graph around it.
    context : Context

    Raises
    ------
    OnnxError
        Something cannot be said; named by node.
    """

    def __init__(self, graph: Any, outer: Scope | None, context: Context) -> None:
        self.outputs = [value.name for value in graph.output]
        self.scope = scope = Scope(graph, outer, context)
        #: Steps of nodes that are cuts, by the node's id; None for others.
        self.cuts = cuts = {id(n): self._cut(n, scope, context) for n in scope.nodes}
        nodes = _needed(scope.nodes, cuts, self.outputs)
        level: dict[str, int] = {}
        levels: list[tuple[list[Any], list[Any]]] = []
        for node in nodes:
            at = max((level.get(name, 0) for name in _reads(node, cuts)), default=0)
            cut = cuts[id(node)] is not None
            levels += [([], []) for _ in range(len(levels), at + 1)]
            levels[at][cut].append(node)
            level |= dict.fromkeys(filter(None, node.output), at + cut)
        self.steps: list[Rest | Recurrence | Choice] = []
        for ordinary, others in levels:
            used = set(self.outputs)
            for node in nodes:
                used |= set() if any(node is n for n in ordinary) else _reads(node, cuts)
            outputs = [name for node in ordinary for name in node.output if name in used]
            if outputs:
                self.steps.append(Rest(ordinary, outputs, scope, context))
            self.steps += [step for n in others if (step := cuts[id(n)]) is not None]
        asked = set(self.outputs).union(*(step.needs for step in self.steps))
        #: Constants that are outputs, or that steps other than models read.
        self._known = {n: scope.value(n) for n in asked & set(scope.constants)}

    def _cut(self, node: Any, scope: Scope, context: Context) -> Recurrence | Choice | None:
        """Make the step of a node that is a cut; None for others."""
        if is_recurrent(node):
            made = Recurrence(node, scope.value)
            name = node.name or next(filter(None, node.output), "")
            while name in context.nodes:
                name += "'"
            context.nodes[name] = made
            return made
        if not holds_recurrence(node):
            return None
        if node.op_type != "If" or node.domain:
            raise OnnxError(f"{label(node)}: expected no recurrent nodes inside a {node.op_type}, "
                            "which would run them again and again; If may have them")  # fmt: skip
        return Choice(node, scope, context)

    def forget(self) -> None:
        """Let go of what only making the plan needed."""
        del self.scope, self.cuts
        for step in self.steps:
            for branch in step.branches.values() if isinstance(step, Choice) else ():
                branch.forget()

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph on values by name, those of the graphs around it included.

        Returns
        -------
        dict of str to ndarray
            Its outputs.

        Raises
        ------
        OnnxError
            Values do not fit.
        """
        found = {**values, **self._known}
        for step in self.steps:
            found |= step.run(found)
        return {name: found[name] for name in self.outputs}


def _reads(node: Any, cuts: Mapping[int, Any]) -> set[str]:
    """Names that a step needs: of a recurrent node those that did not go into its layers."""
    cut = cuts[id(node)]
    return cut.needs if isinstance(cut, Recurrence) else reads(node)


def _needed(nodes: list[Any], cuts: Mapping[int, Any], outputs: Iterable[str]) -> list[Any]:
    """Nodes on which outputs depend, in order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(filter(None, node.output)):
            kept.append(node)
            wanted |= _reads(node, cuts)
    return kept[::-1]
