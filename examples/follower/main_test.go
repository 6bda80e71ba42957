package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// The demo starts its own executable, which here is the test.
func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestDemoTakesOver(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("TMP", tmp) // Windows
	var out bytes.Buffer
	if err := runDemo(t.Context(), &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{"follower sees", "replica has moved on", "done after"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q, got:\n%s", want, &out)
		}
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("the demo left %v behind, %v", left, err)
	}
}

func TestFlagsAreChecked(t *testing.T) {
	var out bytes.Buffer
	if _, err := parseFlags([]string{"-primary", "extra"}, &out); err == nil || !strings.Contains(out.String(), "extra") {
		t.Errorf("%v, %q", err, &out)
	}
	a, err := parseFlags([]string{"-primary"}, &out)
	b, err2 := parseFlags(nil, &out)
	if err != nil || err2 != nil || a.data == b.data {
		t.Errorf("primary and follower share %q: %v, %v", a.data, err, err2)
	}
}
