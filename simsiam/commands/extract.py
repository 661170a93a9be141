"""`simsiam extract`: the encoder of a run or of any checkpoint, alone, as a file that other libraries load."""

import argparse

HELP = "write the encoder of a run folder or checkpoint for torchvision, timm, safetensors or Detectron2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `simsiam extract`."""
    parser.add_argument(
        "source",
        metavar="RUN_OR_FILE",
        help="run folder, encoder file, or weights of SimSiam, MoCo, torchvision, timm, lightly or PASSL (.pdparams)",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="file to write: .safetensors (says what it holds), .pth (torchvision, timm) or .pkl (Detectron2); the "
        "last two get a .json beside them with pixel statistics and more",
    )
    parser.add_argument(
        "--format",
        choices=("safetensors", "torchvision", "timm", "detectron2"),
        help="default: by the suffix; timm makes sure that timm has such a model",
    )
    parser.add_argument(
        "--encoder", metavar="NAME", help="name of the encoder, where the file does not say it and its shapes do not"
    )


def run(args: argparse.Namespace) -> None:
    """Reads, reports what matched, writes; raises UserError where the file does not hold such an encoder."""
    from simsiam.export.read import read_encoder
    from simsiam.export.write import encoder_hash, write_encoder

    found = read_encoder(args.source, name=args.encoder)
    about = {**found.info, "source": found.info["path"]}
    del about["path"]
    write_encoder(found.encoder, args.out, metadata=about, layout=args.format)
    print(f"read     {found.info['path']}: {found.encoder.encoder_name}, {found.encoder.feature_dim} features")
    print(f"tensors  {found.report}")
    print(f"sha256   {encoder_hash(found.encoder)}")
    print(f"wrote    {args.out}")
