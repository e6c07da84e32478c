# The same steps as `make run`, as user 1000 on port 7860 (Spaces' convention for Docker).
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user \
    && install -d -o user -g user /home/user/app

USER user
WORKDIR /home/user/app
ENV GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    GRADIO_ANALYTICS_ENABLED=False \
    GRADIO_TEMP_DIR=/tmp/gradio \
    PYTHONUNBUFFERED=1

COPY --chown=user requirements.txt Makefile ./
RUN make .venv/run
COPY --chown=user . .
RUN touch .venv/run && make weights
EXPOSE 7860
CMD ["make", "run"]
