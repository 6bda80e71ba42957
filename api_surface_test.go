package litestream_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// surface is what packages export: what lacks a comment, and which functions
// and methods there are.
type surface struct {
	undocumented []string
	funcs        []string // "Name", or "Type.Name" of a method
}

// standardMethods belong to interfaces of the standard library, which calls
// them and explains them: error, sort.Interface.
var standardMethods = []string{"Error", "Unwrap", "Len", "Less", "Swap"}

// add adds the exported identifiers of a file of a package.
func (s *surface) add(pkg string, file *ast.File) {
	lacks := func(format string, a ...any) {
		s.undocumented = append(s.undocumented, pkg+"."+fmt.Sprintf(format, a...))
	}
	for _, decl := range file.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			name := decl.Name.Name
			if decl.Recv != nil {
				typ := receiverType(decl.Recv.List[0].Type)
				if !ast.IsExported(typ) {
					continue
				}
				name = typ + "." + name
			}
			if !decl.Name.IsExported() {
				continue
			}
			if decl.Recv != nil && slices.Contains(standardMethods, decl.Name.Name) {
				continue
			}
			s.funcs = append(s.funcs, name)
			if decl.Doc.Text() == "" {
				lacks("%s", name)
			}
		case *ast.GenDecl:
			s.addSpecs(decl, lacks)
		}
	}
}

// addSpecs looks at types, constants and variables. A comment above a group
// speaks for the constants and variables in it.
func (s *surface) addSpecs(decl *ast.GenDecl, lacks func(format string, a ...any)) {
	group := decl.Doc.Text() != ""
	for _, spec := range decl.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			if !spec.Name.IsExported() {
				continue
			}
			if spec.Doc.Text() == "" && (decl.Lparen.IsValid() || !group) {
				lacks("%s", spec.Name)
			}
			if typ, ok := spec.Type.(*ast.InterfaceType); ok {
				for _, m := range typ.Methods.List {
					if len(m.Names) > 0 && m.Doc.Text() == "" && m.Comment.Text() == "" {
						lacks("%s.%s", spec.Name, m.Names[0])
					}
				}
			}
		case *ast.ValueSpec:
			for _, name := range spec.Names {
				if name.IsExported() && !group && spec.Doc.Text() == "" && spec.Comment.Text() == "" {
					lacks("%s", name)
				}
			}
		}
	}
}

func receiverType(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.StarExpr:
		return receiverType(x.X)
	case *ast.IndexExpr:
		return receiverType(x.X)
	case *ast.Ident:
		return x.Name
	}
	return ""
}

// untested returns the functions whose names stand nowhere in the given files:
// methods behind a dot, functions behind a dot or alone. Declarations, comments
// and strings do not count.
func (s *surface) untested(files []*ast.File) (names []string) {
	alone, dotted := map[string]bool{}, map[string]bool{}
	for _, file := range files {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok {
					alone[id.Name] = true
				}
			case *ast.SelectorExpr:
				dotted[n.Sel.Name] = true
			}
			return true
		})
	}
	for _, name := range s.funcs {
		_, method, ok := strings.Cut(name, ".")
		if ok && !dotted[method] || !ok && !dotted[name] && !alone[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// parseGo parses the Go files below a directory, with their comments.
func parseGo(t testing.TB, dir string, deep bool) map[string]*ast.File {
	t.Helper()
	files := map[string]*ast.File{}
	err := filepath.WalkDir(dir, func(name string, ent fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ent.IsDir() && name != dir && (!deep || ent.Name() == "testdata"):
			return fs.SkipDir
		case ent.IsDir() || !strings.HasSuffix(name, ".go"):
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ParseComments|parser.SkipObjectResolution)
		files[filepath.ToSlash(name)] = file
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Whoever reads the documentation finds every exported name explained, and in
// the tests or examples how it is used.
func TestAPISurface_IsDocumentedAndExercised(t *testing.T) {
	var tests []*ast.File
	packages := map[string]*surface{}
	for _, dir := range []string{".", "fileclient", "replicatest", "streamhttp"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		s := &surface{}
		for name, file := range parseGo(t, dir, false) {
			if strings.HasSuffix(name, "_test.go") {
				tests = append(tests, file)
			} else {
				s.add(file.Name.Name, file)
			}
		}
		packages[path.Base(dir)] = s
	}
	for _, file := range parseGo(t, "examples", true) {
		tests = append(tests, file)
	}
	if n := len(packages["."].funcs); n < 100 {
		t.Fatalf("found %d functions in the root package: the test does not look", n)
	}
	for dir, s := range packages {
		slices.Sort(s.undocumented)
		for _, name := range s.undocumented {
			t.Errorf("%s has no comment", name)
		}
		for _, name := range s.untested(tests) {
			t.Errorf("%s: %s is in no test and no example", dir, name)
		}
	}
}

// The audit itself sees what is missing, and nothing else.
func TestAPISurface_FaultsAreFound(t *testing.T) {
	const source = `package p

// Documented.
func Documented() {}
func Bare() {}
func hidden() {}

type T struct{}

func (T) Error() string { return "" }
func (*T) Method() {}

// Named speaks for itself.
func (*T) Named() {}
func (hiddenType) Method2() {}

// I is an interface.
type I interface {
	// A does a.
	A()
	B()
}

// A group.
const (
	C1 = 1
	C2 = 2
)
const C3 = 3
var (
	V1 = 1 // explained
	V2 = 2
	v3 = 3
)
// These are types.
type (
	U struct{}
	// W is one.
	W struct{}
)
`
	const test = `package p

func TestMethod() { Documented(); x.Named(); x.Bare() }
`
	parse := func(src string) *ast.File {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	var s surface
	s.add("p", parse(source))
	if want := []string{"p.Bare", "p.T", "p.T.Method", "p.I.B", "p.C3", "p.V2", "p.U"}; !slices.Equal(s.undocumented, want) {
		t.Errorf("undocumented %v, want %v", s.undocumented, want)
	}
	if got, want := s.untested([]*ast.File{parse(test)}), []string{"T.Method"}; !slices.Equal(got, want) {
		t.Errorf("untested %v, want %v", got, want)
	}
}
