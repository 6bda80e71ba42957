package litestream

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// A failure that lasts is logged once, each change of it once, and its end.
func TestErrorLogNotesChanges(t *testing.T) {
	var lines []string
	l := errorLog{logf: func(format string, a ...any) { lines = append(lines, fmt.Sprintf(format, a...)) }}
	for _, msg := range []string{"", "full", "full", "broken", "", "", "sync replica: full"} {
		var err error
		if msg != "" {
			err = errors.New(msg)
		}
		l.note("sync", err)
		if l.lastError() != err {
			t.Errorf("last error is %v, want %v", l.lastError(), err)
		}
	}
	if want := []string{"sync: full", "sync: broken", "sync: recovered", "sync replica: full"}; !slices.Equal(lines, want) {
		t.Errorf("logged %q, want %q", lines, want)
	}
}
