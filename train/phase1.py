"""Phase 1 (paper Sec. 3.3): a LoRA on infrared images alone."""

from train.launch import run_phase

if __name__ == "__main__":
    run_phase("1", "sd15/phase1.yaml", __doc__)
