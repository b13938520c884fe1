"""Entries of metadata in LiteRT files, also where the weights are behind the FlatBuffer, as above 2 GiB."""

from __future__ import annotations

import numpy as np
import pytest

from foveal.exporting.litert import _with_metadata

SHAPE = (1, 8, 8, 4)


def adding_file(addend: np.ndarray, behind: bool) -> bytes:
    """A file whose network adds a constant to the image; with ``behind``, the constant is behind the FlatBuffer."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    content = addend.tobytes()
    constant = schema.BufferT(offset=1, size=len(content)) if behind else schema.BufferT(data=list(content))
    tensors = [
        schema.TensorT(name=name, shape=list(SHAPE), type=schema.TensorType.FLOAT32, buffer=buffer)
        for name, buffer in (("image", 0), ("constant", 1), ("sum", 0))
    ]
    add = schema.OperatorT(inputs=[0, 1], outputs=[2], builtinOptionsType=schema.BuiltinOptions.AddOptions)
    add.builtinOptions = schema.AddOptionsT()
    code = schema.BuiltinOperator.ADD
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code)],
        subgraphs=[schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[2], operators=[add])],
        buffers=[schema.BufferT(), constant],
    )
    if not behind:
        return bytes(convert_object_to_bytearray(model))
    constant.offset = -(-len(convert_object_to_bytearray(model)) // 16) * 16
    head = bytes(convert_object_to_bytearray(model))
    return head + bytes(constant.offset - len(head)) + content


def run(content: bytes, image: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("behind", [False, True])
def test_entries_are_added_and_the_network_stays(behind: bool) -> None:
    utils = pytest.importorskip("ai_edge_litert.tools.flatbuffer_utils")
    rng = np.random.default_rng(0)
    addend, image = (rng.standard_normal(SHAPE).astype(np.float32) for _ in range(2))
    described = _with_metadata(adding_file(addend, behind), {"one": "a" * 1000, "two": "é"})
    np.testing.assert_array_equal(run(described, image), image + addend)
    model = utils.convert_bytearray_to_object(described)
    texts = {entry.name.decode(): model.buffers[entry.buffer].data.tobytes().decode() for entry in model.metadata}
    assert texts == {"one": "a" * 1000, "two": "é"}
    assert [bool(buffer.offset) for buffer in model.buffers[:2]] == [False, behind]
