"""What a user of tritonclient writes, run in a process of its own: `python triton_script.py ADDRESS`."""

import queue
import sys

import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
if not (client.is_server_live() and client.is_server_ready()):
    sys.exit("not ready")
client.load_model("poet")
client.load_model("doubler")
print(*sorted(model.name for model in client.get_model_repository_index().models))

rows = np.arange(6, dtype=np.float32).reshape(2, 3)
tensors = [triton.InferInput(name, rows.shape, "FP32") for name in "ab"]
for tensor in tensors:
    tensor.set_data_from_numpy(rows)
print(client.infer("doubler", tensors, request_id="1").as_numpy("y").tolist())

prompt = triton.InferInput("text_input", [1], "BYTES")
prompt.set_data_from_numpy(np.array([b"TO BE"], np.object_))
parameters = {"max_tokens": 8, "seed": 3, "temperature": 0.5, "ignore_eos": True}
print(repr(client.infer("poet", [prompt], parameters=parameters).as_numpy("text_output")[0].decode()))

answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
client.async_stream_infer("poet", [prompt], parameters=parameters, enable_empty_final_response=True)
text = b""
while True:
    result, error = answers.get(timeout=20)
    if error:
        sys.exit(str(error))
    if result.get_response().parameters["triton_final_response"].bool_param:
        break
    text += result.as_numpy("text_output")[0]
client.stop_stream()
print(repr(text.decode()))
client.unload_model("doubler")
print(client.is_model_ready("doubler"), client.is_model_ready("poet"))
