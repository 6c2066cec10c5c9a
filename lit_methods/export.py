"""Write a trained network as ONNX and ``torch.export``: ``python -m lit_methods.export [RECIPE] --ckpt_path C``."""

from lit_methods.cli import main

if __name__ == "__main__":
    raise SystemExit(main("export"))
