package litestream

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// Pos is a place in the history of a database: everything before it has been
// captured. It ends at a WAL's header or at a commit frame (I2).
type Pos struct {
	Generation string // 16 hex digits
	Index      int    // how many times the WAL restarted within the generation
	Offset     int64  // bytes into the WAL of that index; 0 is before its header
}

// IsZero reports whether p is the zero position, which names no place.
func (p Pos) IsZero() bool { return p == Pos{} }

// String returns GENERATION/INDEX:OFFSET with 16 hex digits each, and "" for
// the zero position.
func (p Pos) String() string {
	if p.IsZero() {
		return ""
	}
	return p.Generation + "/" + FormatIndex(p.Index) + ":" + FormatOffset(p.Offset)
}

// Truncate returns the start of p's WAL index.
func (p Pos) Truncate() Pos { return Pos{Generation: p.Generation, Index: p.Index} }

// ParsePos parses the form that [Pos.String] returns.
func ParsePos(s string) (Pos, error) {
	if s == "" {
		return Pos{}, nil
	}
	generation, rest, ok := strings.Cut(s, "/")
	index, offset, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 {
		return Pos{}, fmt.Errorf("parse position %q: want GENERATION/INDEX:OFFSET", s)
	}
	if !IsGenerationName(generation) {
		return Pos{}, fmt.Errorf("parse position %q: generation: want %d lowercase hex digits", s, GenerationNameLen)
	}
	p := Pos{Generation: generation}
	var err error
	if p.Index, err = ParseIndex(index); err != nil {
		return Pos{}, fmt.Errorf("parse position %q: %w", s, err)
	}
	if p.Offset, err = ParseOffset(offset); err != nil {
		return Pos{}, fmt.Errorf("parse position %q: %w", s, err)
	}
	return p, nil
}

// ComparePos returns -1, 0 or 1 as a lies before, at or after b in one
// generation. Positions of two generations have no order: that is an error.
func ComparePos(a, b Pos) (int, error) {
	if a.Generation != b.Generation {
		return 0, errors.New("compare positions: generations differ")
	}
	return a.compare(b), nil
}

// compare orders positions of one generation.
func (p Pos) compare(q Pos) int {
	return cmp.Or(cmp.Compare(p.Index, q.Index), cmp.Compare(p.Offset, q.Offset))
}
