"""Channels: what some layers make and others read, found in the graph and cut by selection of units."""

from onnxdecomp.channels.channel import NONE, Channel, ChannelSkip, Producer, Reader
from onnxdecomp.channels.cut_channel import cut_channel
from onnxdecomp.channels.cut_check import check_cut, without_columns
from onnxdecomp.channels.find_channels import BLOCKS, find_channel, find_channels

__all__ = [
    "BLOCKS",
    "NONE",
    "Channel",
    "ChannelSkip",
    "Producer",
    "Reader",
    "check_cut",
    "cut_channel",
    "find_channel",
    "find_channels",
    "without_columns",
]
