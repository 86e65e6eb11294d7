"""How a study's jobs on a Ray cluster are called and marked, so that they are found again."""

STUDY_KEY = "tuner_study"
CONTENT_KEY = "tuner_content"


def attempt_id(name: str, number: int) -> str:
    """Return the id of a study's attempt. Ray takes none twice; a legal name has no dot."""
    return f"{name}.{number}"


def attempt_number(id: str) -> int:
    """Return which attempt of its study a job is; 0 where it is none."""
    number = id.rpartition(".")[2]
    return int(number) if number.isdigit() else 0


def first_command(name: str) -> str:
    """Return the command of an attempt whose files came along; it keeps them for later ones."""
    # Instead of those of other content, not among them.
    kept = 'mkdir -p "$home.new" && cp -R . "$home.new" && rm -rf "$home" && mv "$home.new" "$home"'
    return f'{_home(name)} && rm -rf "$home.new" && {kept} && {_SEARCH}'


def next_command(name: str) -> str:
    """Return the command of an attempt that goes on with the files of an earlier one."""
    return f"{_home(name)} && {_SEARCH}"


_SEARCH = 'TUNER_STUDIES="$studies" exec tuner search "$home/study.yaml"'


def _home(name: str) -> str:
    # Where the ledger is as well: a disk that outlives the job and that all nodes see.
    return f'studies="${{TUNER_STUDIES:-$HOME/tuner-studies}}" && home="$studies/.launched/{name}"'
