package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if childMain() {
		return
	}
	os.Exit(m.Run())
}

// newBench returns a configuration that finishes in seconds.
func newBench(t *testing.T) *bench {
	t.Helper()
	return &bench{n: 2, scale: 0.001, peers: true, dir: t.TempDir(), module: "."}
}

// Every row can be measured, with the peers and without. The figures say
// nothing at this scale, but each job checks that replication worked.
func TestRows(t *testing.T) {
	b := newBench(t)
	without := newBench(t)
	without.n, without.peers = 1, false
	for _, r := range tableRows {
		t.Run(strings.Fields(r.title)[0]+"_"+short(float64(r.id)), func(t *testing.T) {
			l, err := r.measure(b)
			if err != nil {
				t.Fatal(err)
			}
			if l.ours == "" || l.peer == "" || l.goal == "" {
				t.Errorf("a cell is empty: %+v", l)
			}
			if text := l.ours + l.peer + l.beside; strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
				t.Errorf("a cell is no number: %+v", l)
			}
			if l, err = r.measure(without); err != nil {
				t.Fatal(err)
			}
			if l.ours == "" || l.peer != "" {
				t.Errorf("without peers: %+v", l)
			}
		})
	}
}

func TestGrowth(t *testing.T) {
	b := newBench(t)
	b.n = 1
	b.chart = filepath.Join(b.dir, "growth.svg")
	b.update = filepath.Join(b.dir, "doc.md")
	if err := os.WriteFile(b.update, []byte("a\n<!-- begin growth -->\nold\n<!-- end growth -->\nz\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.measureGrowth(); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(b.update)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(doc, []byte("\n|---|")); n != 7 || bytes.Contains(doc, []byte("old")) {
		t.Errorf("want 7 tables in place of the old text, got %d:\n%s", n, doc)
	}
	chart, err := os.ReadFile(b.chart)
	if err != nil {
		t.Fatal(err)
	}
	checkSVG(t, chart, 7)
}

// checkSVG makes sure that a chart is XML, with as many panels.
func checkSVG(t *testing.T, chart []byte, panels int) {
	t.Helper()
	if bytes.Contains(chart, []byte("NaN")) || bytes.Contains(chart, []byte("Inf")) {
		t.Errorf("the chart holds what is no number:\n%s", chart)
	}
	dec := xml.NewDecoder(bytes.NewReader(chart))
	groups := 0
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, chart)
		}
		if el, ok := tok.(xml.StartElement); ok && el.Name.Local == "g" {
			groups++
		}
	}
	if groups != panels {
		t.Errorf("want %d panels, got %d", panels, groups)
	}
}

// A job that lost data is an error, so that no figure stands for a system that
// does not work.
func TestJobsCheckWhatTheyMeasure(t *testing.T) {
	b := newBench(t)
	f := b.long()
	for _, system := range []string{ours, theirs} {
		replica, err := b.history(f, system)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.run(job{Kind: "restore", System: system, Replica: replica, N: f.segments}); err != nil {
			t.Error(err)
		}
		if _, err := b.run(job{Kind: "restore", System: system, Replica: replica, N: f.segments + 1}); err == nil {
			t.Errorf("%s: a replica that lacks the last segment passed", system)
		}
	}
	if _, err := b.run(job{Kind: "nothing"}); err == nil {
		t.Error("an unknown job passed")
	}
}

func TestSamples(t *testing.T) {
	s := samples{4, 1, 9}
	if got := s.median(); got != 4 {
		t.Errorf("median: want 4, got %v", got)
	}
	if got := (samples{1, 2}).median(); got != 1.5 {
		t.Errorf("median of two: want 1.5, got %v", got)
	}
	// Compared by round, not by median.
	if got, want := s.over(samples{2, 1, 3}), (samples{2, 1, 3}); !slices.Equal(got, want) {
		t.Errorf("over: want %v, got %v", want, got)
	}
	if got, want := s.minus(samples{1, 1, 1}), (samples{3, 0, 8}); !slices.Equal(got, want) {
		t.Errorf("minus: want %v, got %v", want, got)
	}
	if got, want := s.String(), "4.00 (1.00 to 9.00)"; got != want {
		t.Errorf("want %q, got %q", want, got)
	}
	if slices.IsSorted(s) {
		t.Error("the order of rounds is lost")
	}
}

func TestParseRows(t *testing.T) {
	if got, err := parseRows("1, 11"); err != nil || !slices.Equal(got, []int{1, 11}) {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := parseRows("all"); err != nil || len(got) != len(tableRows) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "0", "12", "x", "1,,2"} {
		if got, err := parseRows(bad); err == nil {
			t.Errorf("%q: want an error, got %v", bad, got)
		}
	}
}

// The contenders take turns.
func TestCompareInterleaves(t *testing.T) {
	b := &bench{n: 2}
	var order []string
	var cs []contender
	for _, name := range []string{"a", "b"} {
		cs = append(cs, contender{name, func() (metrics, error) {
			order = append(order, name)
			return metrics{"order": float64(len(order))}, nil
		}})
	}
	got, err := b.compare(cs...)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "a", "b"}; !slices.Equal(order, want) {
		t.Errorf("want %v, got %v", want, order)
	}
	if want := (samples{2, 4}); !slices.Equal(got.get("b", "order"), want) {
		t.Errorf("want %v, got %v", want, slices.Collect(maps.Values(got["b"])))
	}
}

func TestReplaceSection(t *testing.T) {
	const doc = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"
	got, err := replaceSection([]byte(doc), "x", []byte("new\n"))
	if want := "a\n<!-- begin x -->\n\nnew\n\n<!-- end x -->\nb\n"; err != nil || string(got) != want {
		t.Errorf("want %q, got %q, %v", want, got, err)
	}
	again, err := replaceSection(got, "x", []byte("new\n"))
	if err != nil || !bytes.Equal(again, got) {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for _, section := range []string{"y", "x -->\n<!-- begin"} {
		if got, err := replaceSection([]byte(doc), section, nil); err == nil {
			t.Errorf("section %q: want an error, got %q", section, got)
		}
	}
}

func TestPrintTable(t *testing.T) {
	var out bytes.Buffer
	printTable(&out, []line{
		{title: "a", peer: "1", ours: "2", beside: "3", goal: "≤ 4", met: true},
		{title: "b", ours: "5", goal: "≤ 4"},
	})
	want := "| a | 1 | 2 | 3 | ≤ 4 |\n| b |  | 5 |  | ≤ 4 (missed) |\n"
	if _, body, _ := strings.Cut(out.String(), "---|\n"); body != want {
		t.Errorf("want %q, got %q", want, body)
	}
}
