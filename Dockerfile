# The API and the page in one container, as a Hugging Face Space runs it; only the page is public.
#     docker build -t model . && docker run --rm -p 7860:7860 model

# slim: Debian and Python without compilers; every dependency has a wheel. A patch version, so that a build in
# three years starts from the same Python; take a newer one, with its fixes, twice a year: change it and run the tests
FROM python:3.13.16-slim-trixie

# start.sh and the health check ask with it
RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*

# a Space runs as user 1000, who needs a home, and owns /app to train in it
RUN useradd --uid 1000 --create-home user && install -d -o user /app
WORKDIR /app

# what changes rarely comes first: a new model rebuilds only what follows; pip compiles bytecode
COPY requirements.txt .
# left out: pytest and what it alone brings, the tests within the packages (a seventh of all), and then pip itself
RUN grep -vE '^(iniconfig|pluggy|pygments|pytest)==' requirements.txt | pip install --no-cache-dir -r /dev/stdin && \
    find /usr/local/lib/python3*/site-packages -type d -name tests -prune -exec rm -r {} + && \
    pip uninstall -qy pip

COPY --chown=user *.py start.sh model.joblib* ./
COPY .streamlit .streamlit
USER user

# a table.csv beside the code is trained on, and is in no layer; else model.joblib is taken, else the wine.
# On a Space a variable of this name, such as --target price --title "What will it sell for?"
ARG TRAIN_OPTIONS=""
RUN --mount=type=bind,target=/context \
    if [ -f /context/table.csv ]; then printf %s "$TRAIN_OPTIONS" | xargs python train.py /context/table.csv; \
    elif [ ! -s model.joblib ]; then python train.py; fi && python -m compileall -q .

# an editor on Windows may have ended start.sh's lines with CRLF, which bash doesn't take
RUN sed -i 's/\r$//' start.sh

# give large blocks back at once: else uploads and their answers fill a container of 1 GB
ENV MALLOC_MMAP_THRESHOLD_=1000000 MALLOC_TRIM_THRESHOLD_=1000000

EXPOSE 7860
# the page alone, since start.sh watches the API; on its own port, below its own path
HEALTHCHECK --start-period=60s --timeout=10s CMD path=${STREAMLIT_SERVER_BASE_URL_PATH#/}; path=${path%/}; \
    curl -sf --noproxy '*' --max-time 4 "127.0.0.1:${UI_PORT:-${PORT:-7860}}${path:+/$path}/_stcore/health" || exit 1

# exec form: bash is PID 1 and hears SIGTERM; by name, since an upload may lose the run bit
CMD ["bash", "start.sh"]
