package litestream

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "example.com/litestream"

// Where the layers allow what they forbid elsewhere. Paths are relative to the
// repository and use slashes.
var (
	sqlFiles = []string{"sqlite.go", "sqlite_raw.go", "sqlite_pages.go"}

	renameDirs = []string{"internal/atomicfile", "internal/fsys"}

	// openFiles are the files of the root package that may open a file by
	// name. Closing a descriptor of a database drops the locks of everyone
	// in the process (I8), so each of them says why it is safe.
	openFiles = []string{
		// The parked descriptor, which is not closed while the file has a name.
		"parked.go",
		// The meta directory's lock.
		"lock.go",
		// A WAL that is written for a database that nobody has open.
		"wal_writer.go",
		// A WAL, on which SQLite has no locks.
		"stale_wal.go",
	}
	openFuncs = []string{"Create", "Open", "OpenFile", "OpenInRoot", "ReadFile", "WriteFile"}

	// aboveRoot are the packages built on the root package.
	aboveRoot = []string{"fileclient", "replicatest", "streamhttp", "examples"}

	directRequirements = []string{"github.com/pierrec/lz4/v4", "golang.org/x/sync", "modernc.org/sqlite"}
)

const maxFileLines = 600

// sourceFile is a Go file of the module that is not a test.
type sourceFile struct {
	name    string            // relative path with slashes
	lines   int               // length
	imports map[string]string // import path to the name that the file uses
	syntax  *ast.File
}

func (f *sourceFile) dir() string { return path.Dir(f.name) } // "." is the root package

func newSourceFile(name string, src []byte) (*sourceFile, error) {
	syntax, err := parser.ParseFile(token.NewFileSet(), name, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	f := &sourceFile{name: name, lines: bytes.Count(src, []byte("\n")), imports: map[string]string{}, syntax: syntax}
	for _, spec := range syntax.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		f.imports[p] = path.Base(p)
		if spec.Name != nil {
			f.imports[p] = spec.Name.Name
		}
	}
	return f, nil
}

// uses returns which of a package's names the file mentions.
func (f *sourceFile) uses(importPath string, names ...string) []string {
	local, ok := f.imports[importPath]
	if !ok {
		return nil
	}
	var used []string
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == local && slices.Contains(names, sel.Sel.Name) {
				used = append(used, path.Base(importPath)+"."+sel.Sel.Name)
			}
		}
		return true
	})
	return used
}

// libraryDirs returns the directories whose code runs in a host: all but the
// examples and those internal packages that only tests and examples import.
func libraryDirs(files []*sourceFile) map[string]bool {
	dirs := map[string]bool{}
	for _, f := range files {
		if top, _, _ := strings.Cut(f.name, "/"); top != "internal" && top != "examples" {
			dirs[f.dir()] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, f := range files {
			for p := range f.imports {
				if rel, ok := strings.CutPrefix(p, modulePath+"/"); ok && dirs[f.dir()] && !dirs[rel] {
					dirs[rel], grown = true, true
				}
			}
		}
	}
	return dirs
}

// layeringFaults returns what breaks the rules of the layers, one line each.
func layeringFaults(files []*sourceFile) (faults []string) {
	report := func(f *sourceFile, format string, a ...any) {
		faults = append(faults, f.name+": "+fmt.Sprintf(format, a...))
	}
	library := libraryDirs(files)
	for _, f := range files {
		if _, ok := f.imports["database/sql"]; ok && library[f.dir()] && !slices.Contains(sqlFiles, f.name) {
			report(f, "imports database/sql; only %s may", sqlFiles[0])
		}
		for _, use := range f.uses("os", "Rename") {
			if !slices.Contains(renameDirs, f.dir()) {
				report(f, "uses %s; only %s may", use, strings.Join(renameDirs, " and "))
			}
		}
		for p, local := range f.imports {
			if local == "." {
				report(f, "imports %s with a dot, which hides what it uses", p)
			}
			top, _, _ := strings.Cut(strings.TrimPrefix(p, modulePath+"/"), "/")
			if f.dir() == "." && strings.HasPrefix(p, modulePath+"/") && slices.Contains(aboveRoot, top) {
				report(f, "the root package imports %s, which builds on it", top)
			}
		}
		if f.dir() == "." && !slices.Contains(openFiles, f.name) {
			for _, use := range f.uses("os", openFuncs...) {
				report(f, "uses %s; only %s may (I8)", use, strings.Join(openFiles, ", "))
			}
		}
		if f.lines > maxFileLines {
			report(f, "has %d lines; want at most %d", f.lines, maxFileLines)
		}
	}
	slices.Sort(faults)
	return faults
}

// moduleFiles parses the module's Go files that are not tests.
func moduleFiles(t *testing.T) (files []*sourceFile) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, ent fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := ent.Name()
		if ent.IsDir() {
			if name == "." {
				return nil
			}
			if base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
				return fs.SkipDir // a module of its own
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := newSourceFile(filepath.ToSlash(name), src)
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestLayersKeepApart(t *testing.T) {
	files := moduleFiles(t)
	if !slices.ContainsFunc(files, func(f *sourceFile) bool { return f.name == "litestream.go" }) {
		t.Fatal("the root package was not found")
	}
	for _, fault := range layeringFaults(files) {
		t.Error(fault)
	}
}

func TestLayeringFaultsAreFound(t *testing.T) {
	const head = "package p\nimport \"os\"\n"
	for _, tt := range []struct {
		name, src string
		want      string // part of the only fault, or "" for none
	}{
		{"sqlite.go", "package p\nimport _ \"database/sql\"", ""},
		{"db.go", "package p\nimport \"database/sql\"\nvar _ sql.DB", "database/sql"},
		{"fileclient/sqlite.go", "package p\nimport db \"database/sql\"\nvar _ db.DB", "database/sql"},
		{"internal/used/x.go", "package p\nimport _ \"database/sql\"", "database/sql"},
		{"internal/host/x.go", "package p\nimport _ \"database/sql\"", ""},
		{"examples/a/x.go", "package p\nimport _ \"database/sql\"", ""},
		{"internal/fsys/x.go", head + "var _ = os.Rename", ""},
		{"restore.go", head + "var _ = os.Rename(\"a\", \"b\")", "os.Rename"},
		{"fileclient/x.go", "package p\nimport other \"os\"\nvar _ = other.Rename", "os.Rename"},
		{"sync.go", "package p\nimport . \"os\"\nvar _ = Rename", "dot"},
		{"lock.go", head + "func f() { os.OpenFile(\"a\", 0, 0) }", ""},
		{"db.go", head + "func f() { os.Open(\"a\") }", "os.Open;"},
		{"db.go", head + "var f = os.ReadFile", "os.ReadFile"},
		{"db.go", head + "func f() { os.Stat(\"a\") }", ""},
		{"fileclient/x.go", head + "func f() { os.Open(\"a\") }", ""},
		{"db.go", "package p\nimport _ \"" + modulePath + "/fileclient\"", "imports fileclient"},
		{"db.go", "package p\nimport _ \"" + modulePath + "/replicatest/sub\"", "imports replicatest"},
		{"streamhttp/x.go", "package p\nimport _ \"" + modulePath + "/fileclient\"", ""},
		{"db.go", "package p\n" + strings.Repeat("\n", maxFileLines-1), ""},
		{"db.go", "package p\n" + strings.Repeat("\n", maxFileLines), "lines"},
	} {
		user, err := newSourceFile("user.go", []byte("package p\nimport _ \""+modulePath+"/internal/used\""))
		if err != nil {
			t.Fatal(err)
		}
		f, err := newSourceFile(tt.name, []byte(tt.src))
		if err != nil {
			t.Fatal(err)
		}
		faults := layeringFaults([]*sourceFile{user, f})
		switch {
		case tt.want == "" && len(faults) == 0:
		case tt.want != "" && len(faults) == 1 && strings.Contains(faults[0], tt.want):
		default:
			t.Errorf("%s: %.70q: want fault %q, got %q", tt.name, tt.src, tt.want, faults)
		}
	}
}

// requirements returns the modules that a go.mod requires directly, sorted.
func requirements(goMod string) (direct []string) {
	block := false
	for line := range strings.Lines(goMod) {
		code, comment, _ := strings.Cut(line, "//")
		fields := strings.Fields(code)
		switch {
		case len(fields) == 0:
			continue
		case fields[0] == ")":
			block = false
			continue
		case fields[0] == "require" && len(fields) == 2 && fields[1] == "(":
			block = true
			continue
		case fields[0] == "require":
			fields = fields[1:]
		case !block:
			continue
		}
		if strings.TrimSpace(comment) != "indirect" {
			direct = append(direct, fields[0])
		}
	}
	slices.Sort(direct)
	return direct
}

func TestTheModuleRequiresNothingElse(t *testing.T) {
	b, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if got := requirements(string(b)); !slices.Equal(got, directRequirements) {
		t.Errorf("direct requirements: want %q, got %q", directRequirements, got)
	}
	got := requirements("module m\nrequire z v1\nrequire (\n\tb v1 // indirect\n\ta v1 // why\n)\nreplace c => d v1\n")
	if want := []string{"a", "z"}; !slices.Equal(got, want) {
		t.Errorf("requirements: want %q, got %q", want, got)
	}
}
