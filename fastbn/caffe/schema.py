"""The part of Caffe's format that is read here, as protobuf messages made at run time: no compiler, no generated code.

What is not declared is skipped in text. In a binary file protobuf keeps it as it is and writes it back: the messages
`Weights...` declare only what every fork of Caffe agrees on, so that all the rest survives `Net.save`.

Names are `bytes` on purpose: protobuf would refuse a file for one name that is not UTF-8.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

CAFFE = """
enum Phase { TRAIN = 0; TEST = 1; }
enum VarianceNorm { FAN_IN = 0; FAN_OUT = 1; AVERAGE = 2; }

message BlobShape { repeated int64 dim = 1 [packed]; }
message BlobProto {
  optional int32 num = 1; optional int32 channels = 2; optional int32 height = 3; optional int32 width = 4;
  repeated float data = 5 [packed]; repeated float diff = 6 [packed];
  optional BlobShape shape = 7;
  repeated double double_data = 8 [packed]; repeated double double_diff = 9 [packed];
}
message FillerParameter {
  optional bytes type = 1 [constant];
  optional float value = 2 [0]; optional float min = 3 [0]; optional float max = 4 [1];
  optional float mean = 5 [0]; optional float std = 6 [1]; optional int32 sparse = 7 [-1];
  optional VarianceNorm variance_norm = 8 [FAN_IN];
}
message ScaleParameter {
  optional int32 axis = 1 [1]; optional int32 num_axes = 2 [1]; optional FillerParameter filler = 3;
  optional bool bias_term = 4 [false]; optional FillerParameter bias_filler = 5;
}
message ReLUParameter { optional float negative_slope = 1 [0]; }
message NetState { optional Phase phase = 1 [TEST]; optional int32 level = 2 [0]; repeated bytes stage = 3; }
message NetStateRule {
  optional Phase phase = 1; optional int32 min_level = 2; optional int32 max_level = 3;
  repeated bytes stage = 4; repeated bytes not_stage = 5;
}
"""

# A net's definition, without its blobs. In text the numbers do not matter: forks' fields have free ones, from 1000 on.
DEFINITION = """
message {kind}BatchNormParameter {{
  optional bool use_global_stats = 1; optional float moving_average_fraction = 2 [0.999]; optional float eps = 3 [1e-5];
  {batch_norm_extra}
}}
message {kind}LayerParameter {{
  optional bytes name = 1; optional bytes type = 2; repeated bytes bottom = 3; repeated bytes top = 4;
  repeated NetStateRule include = 8; repeated NetStateRule exclude = 9;
  optional Phase phase = 10; optional ReLUParameter relu_param = 123;
  optional {kind}BatchNormParameter batch_norm_param = 139; optional ScaleParameter scale_param = 142;
  {layer_extra}
}}
message {kind}NetParameter {{ optional NetState state = 6; repeated {kind}LayerParameter layer = 100; }}
"""

FORKS = """
message BNParameter {
  optional float momentum = 3 [0.9]; optional float eps = 4 [1e-5]; optional bool frozen = 5 [false];
  optional FillerParameter slope_filler = 1; optional FillerParameter bias_filler = 2;
}
"""
TEXT_EXTRA = {
    "batch_norm_extra": "optional bool scale_bias = 1000 [false]; optional FillerParameter scale_filler = 1001; "
    "optional FillerParameter bias_filler = 1002;",
    "layer_extra": "optional BNParameter bn_param = 1000;",
}

WEIGHTS = """
message WeightsLayer { optional bytes name = 1; optional bytes type = 2; repeated BlobProto blobs = 7; }
message Weights { repeated WeightsLayer layer = 100; }
"""

SCHEMA = "".join(
    [
        CAFFE,
        FORKS,
        DEFINITION.format(kind="", batch_norm_extra="", layer_extra=""),
        DEFINITION.format(kind="Text", **TEXT_EXTRA),
        WEIGHTS,
    ]
)

BLOCK = re.compile(r"(message|enum) (\w+) \{((?:.|\n)*?)\}")
FIELD = re.compile(r"(optional|repeated) (\w+) (\w+) = (\d+)(?: \[(\S+)\])?;")
VALUE = re.compile(r"(\w+) = (\d+);")


@cache
def message(name: str) -> Any:
    """The class of a message of the schema.

    Raises
    ------
    ImportError
        The extra `caffe` is not installed.
    """
    try:
        from google.protobuf import message_factory
    except ImportError as error:
        raise ImportError('reading Caffe\'s files needs protobuf: pip install "fastbn[caffe]"') from error
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"fastbn.{name}"))


@cache
def _pool() -> Any:
    """A pool of its own, so that a caffe_pb2 in the same process does no harm."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(name="fastbn/caffe.proto", package="fastbn", syntax="proto2")
    blocks = BLOCK.findall(SCHEMA)
    enums = {name for kind, name, _ in blocks if kind == "enum"}
    for kind, name, body in blocks:
        if kind == "enum":
            enum = file.enum_type.add(name=name)
            for value, number in VALUE.findall(body):
                enum.value.add(name=value, number=int(number))
        else:
            _add_fields(file.message_type.add(name=name), body, enums)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add_fields(target: Any, body: str, enums: set[str]) -> None:
    for label, kind, name, number, option in FIELD.findall(body):
        field = target.field.add(name=name, number=int(number))
        field.label = field.LABEL_OPTIONAL if label == "optional" else field.LABEL_REPEATED
        if kind[0].isupper():
            field.type = field.TYPE_ENUM if kind in enums else field.TYPE_MESSAGE
            field.type_name = f".fastbn.{kind}"
        else:
            field.type = getattr(field, f"TYPE_{kind.upper()}")
        if option == "packed":
            field.options.packed = True
        elif option:
            field.default_value = option
