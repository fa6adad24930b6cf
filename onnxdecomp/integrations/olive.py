"""OnnxLowRank: `compress` as a pass of Microsoft Olive (https://github.com/microsoft/Olive), for ONNX models.

Olive imports this module where its package configuration says so; `python -m onnxdecomp.integrations.olive
packages.json` writes one, which has Olive's own passes, too. docs/guides/olive.md shows a whole workflow.

The pass's parameters are the options of CompressConfig by their Python names, and inputs as Olive's data
configurations. Importing it needs the extra `olive`.
"""

from __future__ import annotations

import argparse
import collections.abc
import dataclasses
import json
import logging
import typing
from pathlib import Path
from typing import Any

import numpy as np
from olive.common.config_utils import validate_config
from olive.common.utils import format_data
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.resource_path import LocalFolder
from olive.search.search_parameter import Categorical

from onnxdecomp.core.options import default_of, described, option_fields
from onnxdecomp.data.read import Data
from onnxdecomp.runtime import jsonio
from onnxdecomp.workflow.compress import compress
from onnxdecomp.workflow.config import CompressConfig, hints

RECORD = "onnxdecomp.json"
"""The run's record, beside the model and among its additional files."""

_logger = logging.getLogger("olive.onnxdecomp")

_OF_OLIVE = ("dry_run", "overwrite", "details")
"""What a pass has no say in: it gives a model, to where Olive wants it."""

_DATA = {"calib_data_config": "calib", "eval_data_config": "data"}
"""Parameters that are data configurations of Olive, and the options that they stand for."""


class OnnxLowRank(Pass):  # type: ignore[misc]
    """Replace layers by chains of smaller ones and cut channels, checked against the model that came in.

    What comes out has the same inputs and outputs, so that quantization and other passes for ONNX can follow.
    A model in which nothing pays comes out as it was, and a warning says why.
    """

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """Chains are timed on the accelerator, so another one gets another model."""
        return False

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        provider = str(accelerator_spec.execution_provider or "cpu")
        found = {
            known.name: _parameter(known, provider if known.name == "provider" else None)
            for known in option_fields(CompressConfig)
            if known.name not in _OF_OLIVE
        }
        for name, option in _DATA.items():
            about = f"A data configuration of Olive, in place of {option!r}."
            found[name] = PassConfigParam(type_=DataConfig | dict, description=about)
        return found

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        target = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        said = {name: value for name, value in config.model_dump().items() if value is not None}
        for name, option in _DATA.items():
            if (given := said.pop(name, None)) is not None:
                said[option] = _arrays(given, model)
        target.parent.mkdir(parents=True, exist_ok=True)
        result = compress(model.model_path, target, overwrite=True, **said)
        for note in result.notes:
            _logger.info(note)
        if not result.changed:
            _logger.warning("the model is as it was: nothing paid; %s says why", RECORD)
        record = target.with_name(RECORD)
        jsonio.dump(result.record, str(record))
        attributes = dict(model.model_attributes or {})
        attributes["additional_files"] = sorted({*attributes.get("additional_files", ()), str(record)})
        return ONNXModelHandler(
            model_path=LocalFolder({"path": target.parent}),
            onnx_file_name=target.name,
            inference_settings=model.inference_settings,
            model_attributes=attributes,
        )


def _parameter(known: dataclasses.Field[object], default: str | None) -> PassConfigParam:
    """An option as Olive declares one; in place of one value a list may be given, for Olive's search."""
    hint, about = hints()[known.name], described(known)
    kind = str | dict if hint is object or object in typing.get_args(hint) else hint
    several = typing.get_origin(hint) in (tuple, collections.abc.Mapping)
    otherwise = about.otherwise or str(default_of(known) if default is None else default)
    return PassConfigParam(
        type_=kind,
        default_value=default,
        search_defaults=None if several else Categorical([default]),
        description=f"{about.help}. Default: {otherwise or 'none'}.",
    )


def _arrays(given: DataConfig | dict[str, Any], model: ONNXModelHandler) -> Data:
    """Inputs of a data configuration, drawn once; with its labels, where there is one for each row."""
    container = validate_config(given, DataConfig).to_data_container()
    batches = [b if isinstance(b, list | tuple) else (b,) for b in container.create_dataloader()]
    feeds = [format_data(batch[0], model.io_config) for batch in batches]
    labels = [np.atleast_1d(batch[1]) for batch in batches if len(batch) > 1]
    if not feeds:
        return feeds
    joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    (rows, *others) = {len(array) for array in joined.values()}
    if others or sum(map(len, labels)) != rows:
        return feeds
    return {**joined, "labels": np.concatenate(labels)}


def package_config() -> dict[str, Any]:
    """Olive's own package configuration, and this pass in it: for `olive.workflows.run(package_config=…)`."""
    with Path(OlivePackageConfig.get_default_config_path()).open(encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    everything = ["*"]
    found["passes"][OnnxLowRank.__name__] = {
        "module_path": f"{__spec__.name}.{OnnxLowRank.__name__}",
        "supported_providers": everything,
        "supported_accelerators": everything,
        "supported_precisions": everything,
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
        "module_dependencies": ["onnxdecomp"],
    }
    return found


def main() -> None:
    """Write the package configuration that `olive run --package-config` wants."""
    parser = argparse.ArgumentParser(prog="python -m onnxdecomp.integrations.olive", description=main.__doc__)
    parser.add_argument("file", help="to write, such as packages.json")
    jsonio.dump(package_config(), parser.parse_args().file)


if __name__ == "__main__":
    main()
