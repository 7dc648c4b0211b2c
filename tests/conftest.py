import logging

# Detectron2's loggers keep the stream of the test that made them, which pytest has closed by then.
logging.raiseExceptions = False
