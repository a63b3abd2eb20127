"""`vocabseg doctor`: what this machine has, and which engine would run here."""

from vocabseg.commands.options import BundleOption

HELP = "Show what is installed, which engine would be used on this machine and why, and what the others lack."
EXAMPLE = (
    "Example: vocabseg doctor\n\n"
    "With a bundle's engine and the licence of its weights: vocabseg doctor --bundle my-bundle"
)


def doctor(bundle: BundleOption = None) -> None:
    from vocabseg.runtime.doctor import examine

    findings = examine(bundle)
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = "ok" if finding.fine else "--"
        print(f"{mark}  {finding.what:<{width}}  {finding.text}")
