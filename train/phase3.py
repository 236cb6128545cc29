"""Phase 3 (paper Sec. 3.3): refinement to one target style."""

from train.launch import run_phase

if __name__ == "__main__":
    run_phase("3", "sd15/phase3.yaml", __doc__)
