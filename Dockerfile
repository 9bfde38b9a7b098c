# The API and the page in one container, as a Hugging Face Space runs it; only the page is public.
#     docker build -t model . && docker run --rm -p 7860:7860 model

# slim: Debian and Python without compilers; every dependency has a wheel
FROM python:3.13-slim

# start.sh and the health check ask with it
RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*

# a Space runs as user 1000, who needs a home, and owns /app to train in it
RUN useradd --uid 1000 --create-home user && install -d -o user /app
WORKDIR /app

# what changes rarely comes first: a new model rebuilds only what follows; pip compiles bytecode
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt

# train only if no model came along
COPY --chown=user . .
USER user
RUN { [ -s model.joblib ] || python train.py; } && python -m compileall -q .

EXPOSE 7860
HEALTHCHECK --start-period=60s CMD curl -sf 127.0.0.1:8001/health && curl -sf 127.0.0.1:7860/_stcore/health

# exec form: bash is PID 1 and hears SIGTERM; by name, since an upload may lose the run bit
CMD ["bash", "start.sh"]
