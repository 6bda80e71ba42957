// Command bench measures this library against Litestream v0.5.16, SQLite's
// backup API and the limits of the machine, and prints the README's table.
//
//	go run . -rows 1,5 -n 3 -scale 0.1
//
// What is compared runs in turn, A B C A B C …, each time in a process of its
// own, so that all meet the same machine. Progress and every sample go to
// standard error, the table to standard output.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// bench is the configuration of a run.
type bench struct {
	rows     []int
	n        int     // repetitions of everything that is compared
	scale    float64 // of sizes and durations
	peers    bool
	growth   bool
	update   string // Markdown files whose figures are replaced
	chart    string // file for the chart of growth
	dir      string // for databases and replicas
	module   string // directory of this module
	profiles string // directory for CPU profiles, or ""

	jobSeq    int
	discarded []string // directories of jobs that are done

	idleSeries series // of the rows that share it
}

func main() {
	if childMain() {
		return
	}
	var b bench
	rows := flag.String("rows", "all", "numbers of the rows to measure, as 1,5,6")
	flag.IntVar(&b.n, "n", 3, "repetitions of everything that is compared")
	flag.Float64Var(&b.scale, "scale", 1, "factor for sizes and durations")
	flag.BoolVar(&b.peers, "peers", true, "measure Litestream v0.5.16 and SQLite's backup API, too")
	flag.BoolVar(&b.growth, "growth", false, "measure how the cost grows, instead of the table")
	flag.StringVar(&b.chart, "chart", "", "with -growth: SVG `file` to write the chart to")
	flag.StringVar(&b.update, "update", "", "Markdown `files`, separated by commas, in which the figures are replaced")
	flag.StringVar(&b.dir, "dir", "", "directory for databases and replicas, which are kept there for the next run (default: a temporary one)")
	flag.StringVar(&b.module, "module", ".", "directory of this module")
	flag.StringVar(&b.profiles, "cpuprofile", "", "`directory` for CPU profiles of what is measured")
	flag.Parse()
	if err := b.main(*rows); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) main(rowList string) (err error) {
	if b.rows, err = parseRows(rowList); err != nil {
		return err
	}
	if b.n < 1 || b.scale <= 0 {
		return errors.New("-n and -scale must be positive")
	}
	keep := b.dir != ""
	if !keep {
		if b.dir, err = os.MkdirTemp("", "litestream-bench-"); err != nil {
			return err
		}
		remove := func() { err = errors.Join(err, os.RemoveAll(b.dir)) }
		defer remove()
		interrupted := make(chan os.Signal, 1)
		signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
		go func() {
			<-interrupted
			remove()
			os.Exit(130)
		}()
	}
	if b.dir, err = filepath.Abs(b.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	if b.profiles != "" {
		if b.profiles, err = filepath.Abs(b.profiles); err != nil {
			return err
		}
		if err := os.MkdirAll(b.profiles, 0o700); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, b.removeDiscarded()) }()
	if b.growth {
		return b.measureGrowth()
	}
	var lines []line
	for _, r := range tableRows {
		if !slices.Contains(b.rows, r.id) {
			continue
		}
		began := time.Now()
		b.logf("== row %d: %s", r.id, r.title)
		l, err := r.measure(b)
		if err != nil {
			return fmt.Errorf("row %d: %w", r.id, err)
		}
		l.title = r.title
		lines = append(lines, l)
		b.logf("-- row %d took %.0f s: %s", r.id, time.Since(began).Seconds(), l.verdict())
	}
	var table bytes.Buffer
	printTable(&table, lines)
	return b.report("table", table.Bytes())
}

// parseRows parses a list of row numbers.
func parseRows(list string) (rows []int, err error) {
	if list == "all" {
		for _, r := range tableRows {
			rows = append(rows, r.id)
		}
		return rows, nil
	}
	for s := range strings.SplitSeq(list, ",") {
		id, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || !slices.ContainsFunc(tableRows, func(r row) bool { return r.id == id }) {
			return nil, fmt.Errorf("-rows: no row %q", s)
		}
		rows = append(rows, id)
	}
	return rows, nil
}

func (b *bench) logf(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }

// scaled returns n times the scale, but at least least.
func (b *bench) scaled(n, least int) int { return max(int(float64(n)*b.scale), least) }

func (b *bench) lasting(d, least time.Duration) time.Duration {
	return max(time.Duration(float64(d)*b.scale), least)
}
