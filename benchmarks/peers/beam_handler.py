"""Beam's own Hugging Face handler, as its documentation shows it: ReadFromParquet | RunInference | WriteToParquet.

Runs in an environment with Beam 2.77 and transformers 4.57, which still has the TensorFlow names that the handler's
module imports. The text-classification pipeline uses only PyTorch, so an empty module stands in for TensorFlow. The
runner is the local one that tagstream uses, with one worker. `seconds`: the pipeline without loading the model.

    python beam_handler.py MODEL INPUT.parquet OUTPUT BATCH_SIZE
"""

import json
import logging
import sys
import time
import types
from importlib.machinery import ModuleSpec

tensorflow = types.ModuleType("tensorflow")
tensorflow.Tensor = type("Tensor", (), {})
tensorflow.__spec__ = ModuleSpec("tensorflow", None)
sys.modules["tensorflow"] = tensorflow

import apache_beam as beam  # noqa: E402
import pyarrow as pa  # noqa: E402
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference  # noqa: E402
from apache_beam.ml.inference.huggingface_inference import HuggingFacePipelineModelHandler, PipelineTask  # noqa: E402
from apache_beam.options.pipeline_options import PipelineOptions  # noqa: E402
from apache_beam.runners.portability.fn_api_runner import FnApiRunner  # noqa: E402

LOADING = []


class Handler(HuggingFacePipelineModelHandler):
    def load_model(self):
        started = time.perf_counter()
        model = super().load_model()
        LOADING.append(time.perf_counter() - started)
        return model


def infer(batch, model, arguments):
    """The handler's default, except that the batch becomes a list.

    KeyedModelHandler passes a tuple, which a pipeline of transformers takes for a single sample.
    """
    return model(list(batch), **arguments)


def row(result):
    key, prediction = result
    best = prediction.inference
    return {"id": key, "label": best["label"], "score": best["score"]}


def main(model, source, output, batch_size):
    logging.getLogger().setLevel(logging.ERROR)
    arguments = {"truncation": True}
    if batch_size > 1:
        arguments["batch_size"] = batch_size
    handler = Handler(task=PipelineTask.TextClassification, model=model, device="CPU", inference_fn=infer)
    schema = pa.schema([("id", pa.int64()), ("label", pa.string()), ("score", pa.float64())])
    options = PipelineOptions(["--direct_num_workers=1", "--direct_running_mode=in_memory", "--no_save_main_session"])
    started = time.perf_counter()
    with beam.Pipeline(runner=FnApiRunner(), options=options) as pipeline:
        (
            pipeline
            | beam.io.ReadFromParquet(source)
            | beam.Map(lambda r: (r["id"], r["text"]))
            | RunInference(KeyedModelHandler(handler), inference_args=arguments)
            | beam.Map(row)
            | beam.io.WriteToParquet(output, schema, file_name_suffix=".parquet")
        )
    if not LOADING:
        raise SystemExit("the time that loading took is not known")
    seconds = time.perf_counter() - started - sum(LOADING)
    print(json.dumps({"seconds": seconds, "load_seconds": sum(LOADING)}))


if __name__ == "__main__":
    import beam_handler  # by its name: what lives in __main__ is copied when it's pickled, LOADING too

    beam_handler.main(*sys.argv[1:4], int(sys.argv[4]))
