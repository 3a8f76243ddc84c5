"""The shop's engine: the library's errors are translated, the shop's errors stay unchanged."""

from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session, sessionmaker

from orchestration.database import install_error_translation


def sessions(url: str | URL) -> sessionmaker[Session]:
    engine = create_engine(url)
    install_error_translation(engine)
    return sessionmaker(engine)
