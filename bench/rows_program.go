package main

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// build builds one of the programs without symbols and returns its file.
func (b *bench) build(program string) (string, error) {
	name := filepath.Join(b.dir, "program-"+program)
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", name, "./programs/"+program)
	cmd.Dir = b.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build program %s: %w\n%s", program, err, out)
	}
	return name, nil
}

func binarySize(b *bench) (line, error) {
	type program struct {
		modules int
		mb      float64
	}
	built := map[string]program{}
	for _, name := range []string{"sqlite", "ours", "peer"} {
		if name == "peer" && !b.peers {
			continue
		}
		file, err := b.build(name)
		if err != nil {
			return line{}, err
		}
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return line{}, err
		}
		size, err := fileSize(file)
		if err != nil {
			return line{}, err
		}
		p := program{modules: len(info.Deps), mb: float64(size) / 1e6}
		if name != "sqlite" {
			p.modules-- // the library itself
		}
		built[name] = p
		b.logf("   %s: %d modules, %.2f MB", name, p.modules, p.mb)
	}
	cell := func(name string) string {
		p, ok := built[name]
		if !ok {
			return ""
		}
		return fmt.Sprintf("%d, %.1f MB", p.modules, p.mb)
	}
	return line{
		peer:   cell("peer"),
		ours:   cell("ours"),
		beside: "SQLite alone: " + cell("sqlite"),
		goal:   "≤ 10, 7.5 MB",
		met:    built["ours"].modules <= 10 && built["ours"].mb <= 7.5,
	}, nil
}

// restoreMemory runs programs that link one library each, since what the
// other one links would count.
func restoreMemory(b *bench) (line, error) {
	programs := map[string]string{}
	var cs []contender
	for _, c := range []struct{ name, program string }{{ours, "ours"}, {theirs, "peer"}} {
		if c.name == theirs && !b.peers {
			continue
		}
		file, err := b.build(c.program)
		if err != nil {
			return line{}, err
		}
		programs[c.name] = file
		replicas := map[string]string{}
		for what, f := range map[string]fixture{"large": b.large(), "long": b.long()} {
			if replicas[what], err = b.history(f, c.name); err != nil {
				return line{}, err
			}
		}
		cs = append(cs, contender{c.name, func() (metrics, error) {
			m := metrics{}
			for what, replica := range replicas {
				peak, err := b.peakOfRestore(programs[c.name], replica)
				if err != nil {
					return nil, err
				}
				m[what+"-MB"] = peak / 1e6
				m["MB"] = max(m["MB"], peak/1e6)
			}
			return m, nil
		}})
	}
	got, err := b.compare(cs...)
	if err != nil {
		return line{}, err
	}
	peak := got.get(ours, "MB")
	return line{
		peer: withUnit(got.get(theirs, "MB"), "MB"),
		ours: withUnit(peak, "MB"),
		goal: "≤ 48 MB",
		met:  slices.Max(peak) <= 48,
	}, nil
}

// peakOfRestore returns the most memory that a program held while it restored
// a replica, in bytes.
func (b *bench) peakOfRestore(program, replica string) (_ float64, err error) {
	dir, err := os.MkdirTemp(b.dir, "restore-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var stdout bytes.Buffer
	cmd := exec.Command(program, "restore", replica, filepath.Join(dir, "db"))
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("restore of %s: %w", filepath.Base(filepath.Dir(replica)), err)
	}
	return strconv.ParseFloat(strings.TrimSpace(stdout.String()), 64)
}
