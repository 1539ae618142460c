#!/usr/bin/env python

import argparse

def main():
    args = parse_args()
    result = function(
        a=args.factor,
        x=args.user_input,
        b=args.constant
    )
    print(f"{result}")

def function(a, x, b):
    return a * x + b

def parse_args():
    parser = argparse.ArgumentParser(description="Calculates a simple function.")

    # user input arg
    parser.add_argument(
        "-x",
        "--user-input",
        type=int,
        action="store",
        help="User input of the function",
        required=True
    )

    # session arg
    parser.add_argument(
        "-a",
        "--factor",
        type=int,
        action="store",
        help="Session input of the function's factor",
        required=True
    )

    # session arg
    parser.add_argument(
        "-b",
        "--constant",
        type=int,
        action="store",
        help="Session input of the function's constant",
        required=True
    )

    return parser.parse_args()

if __name__ == "__main__":
    main()
