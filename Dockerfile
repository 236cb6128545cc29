# The page on a CPU, or on a GPU with the NVIDIA container toolkit: docker run --gpus all ...
FROM python:3.12-slim

RUN useradd --create-home app && install --directory --owner app /home/app/diffv2ir
WORKDIR /home/app/diffv2ir

# First what changes rarely, so that a change of the code does not install everything again.
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt

COPY --chown=app app.py LICENSE README.md pyproject.toml ./
COPY --chown=app diffv2ir diffv2ir
COPY --chown=app assets assets
USER app

ENV DIFFV2IR_HOST=0.0.0.0 DIFFV2IR_PORT=7860 PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD python -c \
    "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['DIFFV2IR_PORT'] + '/health')"
# As Ctrl+C: Python as the first process of a container ignores the usual signal, and would be killed after a while.
STOPSIGNAL SIGINT
CMD ["python", "app.py"]
