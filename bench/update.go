package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// report prints a section of figures and puts it into the files that -update
// names.
func (b *bench) report(section string, text []byte) error {
	if _, err := os.Stdout.Write(text); err != nil {
		return err
	}
	if b.update == "" {
		return nil
	}
	for name := range strings.SplitSeq(b.update, ",") {
		old, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		changed, err := replaceSection(old, section, text)
		if err != nil {
			return fmt.Errorf("-update: %s: %w", name, err)
		}
		if err := os.WriteFile(name, changed, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// replaceSection replaces what stands between the two comments that mark a
// section of a Markdown file.
func replaceSection(doc []byte, section string, text []byte) ([]byte, error) {
	begin, end := "<!-- begin "+section+" -->\n", "<!-- end "+section+" -->"
	head, rest, ok := bytes.Cut(doc, []byte(begin))
	if !ok {
		return nil, fmt.Errorf("no line %q", strings.TrimSpace(begin))
	}
	_, tail, ok := bytes.Cut(rest, []byte(end))
	if !ok {
		return nil, fmt.Errorf("no line %q", end)
	}
	return bytes.Join([][]byte{head, []byte(begin + "\n"), bytes.TrimSpace(text), []byte("\n\n" + end), tail}, nil), nil
}
