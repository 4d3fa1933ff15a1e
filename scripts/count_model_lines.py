"""Print what lines of code each further model costs, as a table in Markdown."""

from tencentpretrain.errors import run_program
from tencentpretrain.inspection.lines import table


def main() -> None:
    print(table())


if __name__ == "__main__":
    run_program(main)
