"""Phase 2 (paper Sec. 3.3): pairs of many cameras and wavelengths, UNet widened to 12 channels."""

from train.launch import run_phase

if __name__ == "__main__":
    run_phase("2", "sd15/phase2.yaml", __doc__)
