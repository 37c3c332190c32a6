"""The part of Caffe's file format that is understood, as protobuf messages.

Caffe's definitions and weights are messages `NetParameter` of protobuf. Names, numbers and defaults
of their fields are its public interface. The table names those with a meaning here, and those of
data layers that only say where data comes from; text with any other field is refused, and binary
files may hold more, which is skipped. Reading executes nothing from a file.
"""

from __future__ import annotations

from functools import cache
from typing import Any

_SHARED = "enum Engine DEFAULT CAFFE CUDNN; Engine engine"

# Message: fields, each `type name number [default]`; `*` behind the type is a list. `int` stands
# for all of protobuf's integers, which are written alike. An enum's values count from 0.
MESSAGES = {
    "BlobShape": "int* dim 1",
    "BlobProto": (
        "int num 1; int channels 2; int height 3; int width 4; float* data 5; BlobShape shape 7;"
        "double* double_data 8"
    ),
    "FillerParameter": (
        "string type 1 constant; float value 2; float min 3; float max 4 1; float mean 5;"
        "float std 6 1; int sparse 7 -1; enum VarianceNorm FAN_IN FAN_OUT AVERAGE;"
        "VarianceNorm variance_norm 8"
    ),
    "NetState": "enum Phase TRAIN TEST; Phase phase 1 TEST; int level 2; string* stage 3",
    "NetStateRule": (
        "enum Phase TRAIN TEST; Phase phase 1; int min_level 2; int max_level 3; string* stage 4;"
        "string* not_stage 5"
    ),
    "NetParameter": (
        "string name 1; V1LayerParameter* layers 2; string* input 3; int* input_dim 4;"
        "bool force_backward 5; NetState state 6; bool debug_info 7; BlobShape* input_shape 8;"
        "LayerParameter* layer 100"
    ),
    "ParamSpec": "string name 1; float lr_mult 3 1; float decay_mult 4 1",
    "LayerParameter": (
        "string name 1; string type 2; string* bottom 3; string* top 4; float* loss_weight 5;"
        "ParamSpec* param 6; BlobProto* blobs 7; NetStateRule* include 8; NetStateRule* exclude 9;"
        "bool* propagate_down 11; TransformationParameter transform_param 100;"
        "LossParameter loss_param 101; AccuracyParameter accuracy_param 102;"
        "ConcatParameter concat_param 104; ConvolutionParameter convolution_param 106;"
        "DataParameter data_param 107; DropoutParameter dropout_param 108;"
        "DummyDataParameter dummy_data_param 109; EltwiseParameter eltwise_param 110;"
        "HDF5DataParameter hdf5_data_param 112; ImageDataParameter image_data_param 115;"
        "InnerProductParameter inner_product_param 117; LRNParameter lrn_param 118;"
        "MemoryDataParameter memory_data_param 119; MVNParameter mvn_param 120;"
        "PoolingParameter pooling_param 121; PowerParameter power_param 122;"
        "ReLUParameter relu_param 123; SigmoidParameter sigmoid_param 124;"
        "SoftmaxParameter softmax_param 125; SliceParameter slice_param 126;"
        "TanHParameter tanh_param 127; ReshapeParameter reshape_param 133;"
        "FlattenParameter flatten_param 135; BatchNormParameter batch_norm_param 139;"
        "ELUParameter elu_param 140; BiasParameter bias_param 141; ScaleParameter scale_param 142;"
        "InputParameter input_param 143"
    ),
    # The form of layers until 2014, with which many published weights are stored.
    "V1LayerParameter": (
        "string* bottom 2; string* top 3; string name 4; enum LayerType NONE ACCURACY BNLL CONCAT"
        " CONVOLUTION DATA DROPOUT EUCLIDEAN_LOSS FLATTEN HDF5_DATA HDF5_OUTPUT IM2COL IMAGE_DATA"
        " INFOGAIN_LOSS INNER_PRODUCT LRN MULTINOMIAL_LOGISTIC_LOSS POOLING RELU SIGMOID SOFTMAX"
        " SOFTMAX_LOSS SPLIT TANH WINDOW_DATA ELTWISE POWER SIGMOID_CROSS_ENTROPY_LOSS HINGE_LOSS"
        " MEMORY_DATA ARGMAX THRESHOLD DUMMY_DATA SLICE MVN ABSVAL SILENCE CONTRASTIVE_LOSS EXP"
        " DECONVOLUTION; LayerType type 5; BlobProto* blobs 6; float* blobs_lr 7;"
        "float* weight_decay 8; ConcatParameter concat_param 9;"
        "ConvolutionParameter convolution_param 10; DataParameter data_param 11;"
        "DropoutParameter dropout_param 12; HDF5DataParameter hdf5_data_param 13;"
        "ImageDataParameter image_data_param 15; InnerProductParameter inner_product_param 17;"
        "LRNParameter lrn_param 18; PoolingParameter pooling_param 19;"
        "PowerParameter power_param 21; MemoryDataParameter memory_data_param 22;"
        "EltwiseParameter eltwise_param 24; DummyDataParameter dummy_data_param 26;"
        "AccuracyParameter accuracy_param 27; ReLUParameter relu_param 30;"
        "SliceParameter slice_param 31; NetStateRule* include 32; NetStateRule* exclude 33;"
        "MVNParameter mvn_param 34; float* loss_weight 35;"
        "TransformationParameter transform_param 36; TanHParameter tanh_param 37;"
        "SigmoidParameter sigmoid_param 38; SoftmaxParameter softmax_param 39;"
        "LossParameter loss_param 42"
    ),
    "TransformationParameter": (
        "float scale 1 1; bool mirror 2; int crop_size 3; string mean_file 4; float* mean_value 5;"
        "bool force_color 6; bool force_gray 7"
    ),
    "LossParameter": (
        "int ignore_label 1; bool normalize 2; enum NormalizationMode FULL VALID BATCH_SIZE NONE;"
        "NormalizationMode normalization 3 VALID"
    ),
    "AccuracyParameter": "int top_k 1 1; int axis 2 1; int ignore_label 3",
    "BatchNormParameter": (
        "bool use_global_stats 1; float moving_average_fraction 2 0.999; float eps 3 1e-5"
    ),
    "BiasParameter": "int axis 1 1; int num_axes 2 1; FillerParameter filler 3",
    "ConcatParameter": "int concat_dim 1 1; int axis 2 1",
    "ConvolutionParameter": (
        "int num_output 1; bool bias_term 2 true; int* pad 3; int* kernel_size 4; int group 5 1;"
        "int* stride 6; FillerParameter weight_filler 7; FillerParameter bias_filler 8;"
        f"int pad_h 9; int pad_w 10; int kernel_h 11; int kernel_w 12; int stride_h 13;"
        f"int stride_w 14; {_SHARED} 15; int axis 16 1; bool force_nd_im2col 17; int* dilation 18"
    ),
    "DataParameter": (
        "string source 1; float scale 2 1; string mean_file 3; int batch_size 4; int crop_size 5;"
        "bool mirror 6; int rand_skip 7; enum DB LEVELDB LMDB; DB backend 8;"
        "bool force_encoded_color 9; int prefetch 10 4"
    ),
    "DropoutParameter": "float dropout_ratio 1 0.5",
    "DummyDataParameter": (
        "FillerParameter* data_filler 1; int* num 2; int* channels 3; int* height 4; int* width 5;"
        "BlobShape* shape 6"
    ),
    "EltwiseParameter": (
        "enum EltwiseOp PROD SUM MAX; EltwiseOp operation 1 SUM; float* coeff 2;"
        "bool stable_prod_grad 3 true"
    ),
    "ELUParameter": "float alpha 1 1",
    "FlattenParameter": "int axis 1 1; int end_axis 2 -1",
    "HDF5DataParameter": "string source 1; int batch_size 2; bool shuffle 3",
    "ImageDataParameter": (
        "string source 1; float scale 2 1; string mean_file 3; int batch_size 4 1; int crop_size 5;"
        "bool mirror 6; int rand_skip 7; bool shuffle 8; int new_height 9; int new_width 10;"
        "bool is_color 11 true; string root_folder 12"
    ),
    "InnerProductParameter": (
        "int num_output 1; bool bias_term 2 true; FillerParameter weight_filler 3;"
        "FillerParameter bias_filler 4; int axis 5 1; bool transpose 6"
    ),
    "InputParameter": "BlobShape* shape 1",
    "LRNParameter": (
        "int local_size 1 5; float alpha 2 1; float beta 3 0.75;"
        f"enum NormRegion ACROSS_CHANNELS WITHIN_CHANNEL; NormRegion norm_region 4; float k 5 1;"
        f"{_SHARED} 6"
    ),
    "MemoryDataParameter": "int batch_size 1; int channels 2; int height 3; int width 4",
    "MVNParameter": "bool normalize_variance 1 true; bool across_channels 2; float eps 3 1e-9",
    "PoolingParameter": (
        "enum PoolMethod MAX AVE STOCHASTIC; PoolMethod pool 1; int* kernel_size 2; int* stride 3;"
        "int* pad 4; int kernel_h 5; int kernel_w 6; int stride_h 7; int stride_w 8; int pad_h 9;"
        f"int pad_w 10; {_SHARED} 11; bool global_pooling 12"
    ),
    "PowerParameter": "float power 1 1; float scale 2 1; float shift 3",
    "ReLUParameter": f"float negative_slope 1; {_SHARED} 2",
    "ReshapeParameter": "BlobShape shape 1; int axis 2; int num_axes 3 -1",
    "ScaleParameter": (
        "int axis 1 1; int num_axes 2 1; FillerParameter filler 3; bool bias_term 4;"
        "FillerParameter bias_filler 5"
    ),
    "SigmoidParameter": f"{_SHARED} 1",
    "SliceParameter": "int slice_dim 1 1; int* slice_point 2; int axis 3 1",
    "SoftmaxParameter": f"{_SHARED} 1; int axis 2 1",
    "TanHParameter": f"{_SHARED} 1",
}


def enum_values() -> set[str]:
    """The names of all values of all enums."""
    declarations = (d.split() for row in MESSAGES.values() for d in row.split(";"))
    return {value for kind, _, *values in declarations if kind == "enum" for value in values}


@cache
def message_class(name: str) -> Any:
    """The class of a message of the table.

    Raises:
        ImportError: the package protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError as e:
        raise ImportError(
            "layers.caffe: expected the package protobuf, which reads Caffe's files, got none. "
            "pip install 'minigrad[caffe]'"
        ) from e
    if not _pool:
        file = descriptor_pb2.FileDescriptorProto(name="minigrad_caffe.proto", package="caffe")
        for message, fields in MESSAGES.items():
            _describe(file.message_type.add(name=message), fields)
        _pool.append(descriptor_pool.DescriptorPool())  # of our own: another may know Caffe's
        _pool[0].Add(file)
    return message_factory.GetMessageClass(_pool[0].FindMessageTypeByName(f"caffe.{name}"))


_pool: list[Any] = []


def _describe(message: Any, fields: str) -> None:
    """Fill in the description of a message from its row of the table."""
    scalars = {"float": 2, "int": 3, "bool": 8, "string": 9, "double": 1}  # protobuf's TYPE_*
    enums: set[str] = set()
    for declaration in fields.split(";"):
        kind, name, *rest = declaration.split()
        if kind == "enum":
            enums.add(name)
            enum = message.enum_type.add(name=name)
            for number, value in enumerate(rest):
                enum.value.add(name=value, number=number)
            continue
        field = message.field.add(name=name, number=int(rest[0]))
        field.label = 3 if kind.endswith("*") else 1  # LABEL_REPEATED, LABEL_OPTIONAL
        kind = kind.rstrip("*")
        if kind in scalars:
            field.type = scalars[kind]
        else:
            field.type = 14 if kind in enums else 11  # TYPE_ENUM, TYPE_MESSAGE
            scope = f"{message.name}." if kind in enums else ""
            field.type_name = f".caffe.{scope}{kind}"
        if len(rest) > 1:
            field.default_value = rest[1]
