"""Peak rates of dense matrix products, from NVIDIA data sheets, for the model FLOPs utilisation (MFU)."""

import torch

_BF16_PEAKS = {
    "A100": 312e12,  # NVIDIA A100 data sheet
    "H100 PCIe": 756e12,  # NVIDIA H100 data sheet, PCIe
    "H100": 989e12,  # NVIDIA H100 data sheet, SXM
    "H200": 989e12,  # NVIDIA H200 data sheet, SXM
    "B200": 2250e12,  # NVIDIA DGX B200 data sheet, per GPU
    "L40S": 362e12,  # NVIDIA L40S data sheet
    "L4": 121e12,  # NVIDIA L4 data sheet
    "A10": 125e12,  # NVIDIA A10 data sheet
    "V100": 125e12,  # NVIDIA V100 data sheet (fp16)
}


def peak_flops(device_type: str, num_devices: int) -> float | None:
    """Returns the bf16 FLOPs per second of all devices together; None if the peak of the device is not known.

    Args:
        device_type: "cpu" or "cuda". All devices count as the same model as the current device.
        num_devices: Number of devices on all nodes.
    """
    if device_type != "cuda":
        return None
    name = torch.cuda.get_device_name()
    for fragment in sorted(_BF16_PEAKS, key=len, reverse=True):
        if fragment in name:
            return _BF16_PEAKS[fragment] * num_devices
    return None
